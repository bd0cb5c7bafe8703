"""The command line: groups of commands, no logic."""

from __future__ import annotations

import click


@click.group()
@click.version_option(package_name="gpt-oss-agent")
def main() -> None:
    """Fix bugs with open-weight models, in a sandbox, with evidence."""
