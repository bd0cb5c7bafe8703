"""Open a sandbox: the one function that chooses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sandbox import scratch
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.client import Client
from sandbox.docker import Limits
from sandbox.snapshot import Item, Snapshot

# The environment of every command, independent of the host's.
ENVIRONMENT = {
    "LANG": "C.UTF-8", "TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0",
    # Python considers bytecode current by the file's time in seconds and its size: it would miss a quick edit of the same length.
    "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """Options of a sandbox. ``kind`` is docker, or none for this machine itself, unprotected."""

    run: str
    kind: str = "docker"
    image: str | None = None  # a reference, "host", or None for the default
    limits: Limits = field(default_factory=Limits)
    env: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)
    say: Callable[[str], None] = lambda _: None  # called, from another thread, with what was chosen and what it means


def open_sandbox(options: SandboxOptions, snapshot: Snapshot, patch: bytes = b"") -> Sandbox:
    """Start a sandbox and copy the snapshot in; ``patch`` restores the state of a lost one. Blocks; call it from a thread.

    Raises EngineUnavailable, ImageUnavailable, SandboxError, and WorktreeError if git cannot read the repository.
    """
    with scratch.folder("pack") as folder, ThreadPoolExecutor(3) as beside:
        written = beside.submit(snapshots.write_metadata, snapshot, folder)
        listed = snapshots.items(snapshot)
        started = beside.submit(_start, options, snapshot, listed)
        excludes = beside.submit(snapshots.excludes, snapshot)
        client, skip = started.result()
        try:
            # The files first, because a long history is still being packed meanwhile.
            parts = itertools.chain(snapshots.contents(snapshot, listed), _metadata(written, folder))
            client.fill(parts, excludes.result(), skip)
            if patch:
                client.restore(patch)
            client.settle()
        except BaseException:
            client.close()
            raise
    return client


def attach(options: SandboxOptions, snapshot: Snapshot) -> Sandbox | None:
    """Return the sandbox that a killed run left behind, or None if there is none (then open one with its last patch)."""
    if options.kind == "none":
        return None
    from sandbox import docker

    return docker.attach(snapshot, options.run, options.limits.grace_s)


def _metadata(written: Future[None], folder: Path) -> Iterator[bytes]:
    written.result()
    yield from snapshots.metadata(folder)


def _start(options: SandboxOptions, snapshot: Snapshot, listed: Sequence[Item]) -> tuple[Client, list[str]]:
    match options.kind:
        case "docker":
            from sandbox import docker

            needed_bytes = snapshots.size_bytes(snapshot, listed)
            order = docker.Order(options.run, options.image, options.limits, options.env, needed_bytes, options.say)
            return docker.start(snapshot, order)
        case "none":
            from sandbox import local

            return local.start(snapshot, options.env), []
        case _:
            raise ValueError(f"sandbox kind {options.kind!r}: one of docker, none")
