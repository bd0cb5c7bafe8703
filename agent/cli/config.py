"""`agent config show`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from agent.cli.options import config_options, configured, find_repository
from agent.config import RULES, SECRETS, public
from agent.errors import UsageError


@click.group()
def config() -> None:
    """Show the configuration and where each value comes from."""


@config.command()
@click.option(
    "--repo",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder in the repository (default: the current one).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_options()
def show(repo: Path | None, as_json: bool, **flags: object) -> None:
    """Show every setting, its value and its source.

    Flags given here count too, so that you can try out a command line. API keys are not printed, only whether they are set.
    """
    try:
        repository = find_repository(repo or Path.cwd())
    except UsageError:
        if repo is not None:
            raise
        repository = None  # outside of a repository there is simply no agent.toml
    loaded = configured(flags, repository)
    values = public(loaded.config)
    values |= {key: "set" if getattr(loaded.config, key) else None for key in SECRETS}
    if as_json:
        click.echo(json.dumps({key: {"value": values[key], "source": loaded.sources[key]} for key in RULES}, indent=2))
        return
    width = max(len(key) for key in RULES)
    for key in RULES:
        value = "(not set)" if values[key] is None else "(hidden)" if key in SECRETS else json.dumps(values[key])
        click.echo(f"{key:<{width}}  {value}  # {loaded.sources[key]}")
