"""`agent doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import click

from agent.cli.options import config_options, configured, find_repository
from agent.doctor import examine
from agent.errors import UsageError
from agent.lines import clean

PATIENCE_S = 5.0  # a doctor does not wait for a server that is starting


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@config_options("endpoint", "model", "wire", "script", "image", "network", "sandbox", "context_tokens")
def doctor(as_json: bool, **flags: object) -> int:
    """Check what works on this machine, and how to fix the rest.

    Each part is really used: a container is started, the model's endpoint is asked. The exit code is that of a run that meets
    the first fault: 3 for the endpoint, 8 for the sandbox, 1 for anything else.
    """
    try:
        repository = find_repository(Path.cwd())
    except UsageError:
        repository = None
    config = replace(configured(flags, repository).config, endpoint_timeout_s=PATIENCE_S)
    worst = 0
    for finding in examine(config):
        worst = worst or finding.exit_code
        if as_json:
            click.echo(json.dumps(asdict(finding) | {"works": finding.works}))
        else:
            mark = click.style("works", fg="green") if finding.works else click.style("fails", fg="red")
            click.echo(f"{mark}  {finding.subject:<15}  {clean(finding.detail)}")
    return worst
