"""`agent patch apply`."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from agent.apply import apply_patch


@click.group()
def patch() -> None:
    """Apply patches in the model's format."""


@patch.command()
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder that the patch's paths are relative to, and cannot leave (default: the current one).",
)
@click.argument("file", type=click.File("rb"), default="-")
def apply(root: Path, file: BinaryIO) -> None:
    """Apply the patch in FILE, or from standard input: all or nothing.

    Exit code 0: applied; 5: it does not fit the files; 2: it is not a patch.
    """
    planned = apply_patch(file.read(), root)
    for line in planned.summary:
        click.echo(line)
    for note in planned.notes:
        click.echo(f"note: {note}", err=True)
