"""The tables in the documents match the code. GOLDEN_RENEW=1 rewrites the settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.cli.main import COMMANDS
from agent.cli.options import FLAGS
from agent.config import RULES, RunConfig, public
from agent.events import EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
AUTOMATION = ROOT / "docs" / "automation.md"
BEGIN, END = "<!-- settings: begin (make golden renews this table) -->\n", "<!-- settings: end -->"


def table() -> str:
    shown = public(RunConfig())
    rows = ["| key | flag | default | in agent.toml | what it is |", "|---|---|---|---|---|"]
    for key, rule in RULES.items():
        flag = f"`{FLAGS[key][0]}`" if key in FLAGS else ""
        value = shown.get(key)
        default = "" if value is None or rule.kind == "path" else f"`{_plain(value)}`"
        choices = f" ({', '.join(rule.choices)})" if rule.choices else ""
        rows.append(
            f"| `{key}` | {flag} | {default} | {'no' if rule.personal else 'yes'} | {rule.help[:-1]}{choices} |"
        )
    return "\n".join(rows) + "\n"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_golden_settings_are_the_settings() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    found, tail = rest.split(END)
    if os.environ.get("GOLDEN_RENEW"):
        CONFIGURATION.write_text(head + BEGIN + table() + END + tail, encoding="utf-8")
    else:
        assert found == table(), "renew it with: make golden"


def test_every_exit_code_is_documented() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", AUTOMATION.read_text(encoding="utf-8"), re.MULTILINE)}
    assert codes == {*EXIT_CODES.values(), 2}


def test_every_command_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if not re.search(rf"`(agent )?{name}\b", text)]
    assert not missing
