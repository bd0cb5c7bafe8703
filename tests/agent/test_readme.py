"""The README's tables are made from the code, so that they stay true. GOLDEN_RENEW=1 writes them anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.cli.main import COMMANDS
from agent.cli.options import FLAGS
from agent.config import RULES, RunConfig, public
from agent.events import EXIT_CODES

README = Path(__file__).resolve().parents[2] / "README.md"
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


def test_golden_settings_in_the_readme_are_the_settings() -> None:
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    found, tail = rest.split(END)
    if os.environ.get("GOLDEN_RENEW"):
        README.write_text(head + BEGIN + table() + END + tail, encoding="utf-8")
    else:
        assert found == table(), "renew it with: make golden"


def test_every_exit_code_is_in_the_readme() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README.read_text(encoding="utf-8"), re.MULTILINE)}
    assert codes == {*EXIT_CODES.values(), 2}


def test_every_command_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if not re.search(rf"`(agent )?{name}\b", text)]
    assert not missing
