"""Renews docs/ci/constraints.txt from an environment: .venv/bin/python scripts/pins.py"""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "docs/ci/constraints.txt"
HEAD = "# What the action and the GitLab template install, as the tests were seen with it. scripts/pins.py renews it.\n"


def pins() -> dict[str, str]:
    """Return every package that the product needs here, itself or through others, with its version."""
    found: dict[str, str] = {}
    wanted = [(line, "") for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    while wanted:
        line, extra = wanted.pop()
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        package = distribution(name)
        found[name] = package.version
        wanted += [(each, extra) for each in package.requires or () for extra in ("", *requirement.extras)]
    return found


if __name__ == "__main__":
    PINS.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(pins().items())))
