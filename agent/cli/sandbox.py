"""`agent sandbox build` and `agent sandbox clean`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from agent.cli.options import config_options, configured
from agent.errors import UsageError
from agent.log import LOG_NAME
from agent.runs import is_running

DEFAULT_TAG = "gpt-oss-agent/sandbox:latest"


@click.group()
def sandbox() -> None:
    """Build images, and clean up after killed runs."""


@sandbox.command()
@click.argument("packages", nargs=-1, metavar="[PACKAGE]...")
@click.option(
    "--dockerfile", type=click.Path(path_type=Path), metavar="PATH", help="A Dockerfile, or the folder that holds it."
)
@click.option("--tag", default=DEFAULT_TAG, show_default=True, metavar="NAME", help="Name of the image.")
@click.option("--suite", default="stable", show_default=True, help="Debian suite that the packages come from.")
def build(packages: tuple[str, ...], dockerfile: Path | None, tag: str, suite: str) -> None:
    """Build an image from a Dockerfile, or from Debian packages.

    Packages need no image registry, only a Debian mirror and debootstrap (as root): `agent sandbox build pytest nodejs`.
    """
    if bool(packages) == (dockerfile is not None):
        raise UsageError("Say what to build the image from: --dockerfile PATH, or names of Debian packages.")
    from sandbox import docker, image

    if dockerfile is not None:
        dockerfile = _readable(dockerfile)
    client = docker.engine(timeout_s=3600)
    try:
        if dockerfile is not None:
            made = image.build_from_dockerfile(client, dockerfile, tag)
        else:
            made = image.build_from_debian(client, packages, tag, suite)
    finally:
        client.close()
    click.echo(made)
    click.echo(f'Use it with --image {tag}, or in agent.toml: image = "{tag}"', err=True)


def _readable(path: Path) -> Path:
    """Return the path of the Dockerfile. Raises UsageError if it cannot be read."""
    file = path / "Dockerfile" if os.path.isdir(path) else path  # noqa: PTH112 - Path.is_dir may raise
    try:
        file.open("rb").close()
    except OSError as error:
        raise UsageError(
            f"--dockerfile {path}: {file} cannot be read: {error.strerror}. Name a Dockerfile, or the folder that holds it."
        ) from error
    return file


@sandbox.command()
@config_options("runs_dir")
def clean(runs_dir: Path | None) -> None:
    """Remove what killed runs left behind: containers, temporary folders, unfinished worktrees, unused images.

    Containers stop on their own after a while; this is for those who do not want to wait.
    """
    folder = configured({"runs_dir": runs_dir}, None).config.runs_dir
    from agent.landing import sweep

    for gone in sweep(folder):
        click.echo(f"removed {gone}")
    from sandbox import docker, image

    client = docker.engine()
    try:
        for run, container in docker.orphans(client):
            log = folder / run / LOG_NAME
            if not log.exists():
                click.echo(f"kept the container of {run}: that run is not in {folder}", err=True)
            elif not is_running(log):
                docker.remove(client, container)
                click.echo(f"removed the container of {run}")
        for name in image.remove_unused(client):
            click.echo(f"removed the image {name}")
    finally:
        client.close()
