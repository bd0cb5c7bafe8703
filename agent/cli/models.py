"""`agent models`: checkpoints for the runtime on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType

GIB = 1 << 30


@click.group()
def models() -> None:
    """Download, list and verify checkpoints for this machine."""


@models.command()
@click.argument("repository", default="openai/gpt-oss-20b")
@click.option("--revision", metavar="REV", help="Branch, tag or commit (default: the newest).")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to keep it in (default: Hugging Face's cache).",
)
@click.option("--endpoint", metavar="URL", help="URL of a mirror of Hugging Face's hub.")
def pull(repository: str, revision: str | None, cache: Path | None, endpoint: str | None) -> None:
    """Download a checkpoint (default: openai/gpt-oss-20b) and verify it. Files that are already here are kept."""
    with _hashing() as progress:
        path, verified = _hub().pull(repository, revision, cache, endpoint, progress)
    click.echo(f"{verified.hashed_files} files, {verified.read_bytes / GIB:.1f} GiB, all hashes match", err=True)
    click.echo(path)


@models.command("list")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder they are in (default: Hugging Face's cache).",
)
def list_models(cache: Path | None) -> None:
    """List the gpt-oss checkpoints on this machine."""
    found = _hub().cached_models(cache)
    for model in found:
        click.echo(f"{model.repository}  {model.revision[:12]}  {model.size_bytes / GIB:.1f} GiB  {model.path}")
        if model.problem is not None:
            click.echo(f"  {model.problem}", err=True)
    if not found:
        click.echo("none yet: run agent models pull openai/gpt-oss-20b", err=True)


@models.command()
@click.argument("model")
@click.option(
    "--cache", type=click.Path(path_type=Path), metavar="DIR", help="Folder it is in (default: Hugging Face's cache)."
)
def verify(model: str, cache: Path | None) -> None:
    """Verify the hashes and tensors of a checkpoint (a folder or a downloaded name), without network."""
    hub = _hub()
    path = hub.locate(model, cache)
    with _hashing() as progress:
        verified = hub.verify(path, progress)
    unknown = f", {verified.unknown_files} without a known hash" if verified.unknown_files else ""
    click.echo(f"{path}: all tensors are there; the hashes of {verified.hashed_files} files match{unknown}")


@contextmanager
def _hashing() -> Iterator[Callable[[str, int], None] | None]:
    """Show on a terminal which file is being hashed; elsewhere show nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda name, done: click.echo(f"\r\x1b[Khashing {name}: {done / GIB:.1f} GiB", nl=False, err=True)
    finally:
        click.echo(err=True)


def _hub() -> ModuleType:
    """Import the hub's client. Raises UsageError if the runtime is not installed."""
    try:
        from runtime.model import hub
    except ModuleNotFoundError as missing:
        raise UsageError(
            f'agent models needs the runtime, and {missing.name} is not installed: pip install "gpt-oss-agent[runtime]"'
        ) from missing
    return hub
