"""Archives that are sent between machines without a shared disk: a checkout to a worker, an attempt's folder back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from agent.batch.attempt import RESULT_NAME
from agent.batch.processes import LOG_NAME as WORKER_LOG_NAME
from agent.errors import AgentError
from agent.log import LOG_NAME
from agent.runs import PATCH_NAME
from sandbox import plumbing, scratch
from sandbox import snapshot as snapshots

MAX_CHECKOUT_BYTES = 256 << 20
MAX_ATTEMPT_BYTES = 64 << 20
LEFT_OUT_NAME = "left-out.txt"


def pack_checkout(checkout: Path, max_bytes: int = MAX_CHECKOUT_BYTES) -> bytes:
    """Return a checkout's commit as an archive of its git directory, with the same history as in a sandbox.

    Raises WorktreeError if git fails, AgentError if the archive exceeds ``max_bytes``.
    """
    with scratch.folder("cargo") as fresh:
        snapshot = snapshots.take(checkout, fresh / "state", include_uncommitted=False)
        git_dir = fresh / ".git"
        git_dir.mkdir()
        snapshots.write_metadata(snapshot, git_dir)
        for folder in ("refs/heads", "objects"):  # git requires these folders in a repository, but they may be missing
            (git_dir / folder).mkdir(parents=True, exist_ok=True)
        data = _archive([(".git", git_dir)], "w")
    if len(data) > max_bytes:
        raise AgentError(
            f"the repository has {len(data) >> 20} MiB, more than the {max_bytes >> 20} MiB that can be sent to a machine "
            "of the cluster: run this task without --engine ray, or on a smaller repository"
        )
    return data


def unpack_checkout(data: bytes, place: Path) -> None:
    """Create the checkout at ``place``, which must not exist, atomically."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch.staging(place.parent) as folder:
        fresh = folder / "checkout"
        fresh.mkdir()
        _extract(data, fresh)
        plumbing.run(["reset", "-q", "--hard"], fresh, plumbing.ISOLATED)
        fresh.rename(place)


def pack_attempt(folder: Path, max_bytes: int = MAX_ATTEMPT_BYTES) -> bytes:
    """Return an archive of an ended attempt: result, patch, log and the worker's output.

    If that exceeds ``max_bytes``, it has only result and patch, and a note that says so.
    """
    kept = [*folder.glob(RESULT_NAME), *folder.glob(f"*/{PATCH_NAME}")]
    logs = [*folder.glob(WORKER_LOG_NAME), *folder.glob(f"*/{LOG_NAME}")]
    data = _archive(((str(path.relative_to(folder)), path) for path in (*kept, *logs)), "w:gz")
    if len(data) <= max_bytes:
        return data
    note = folder / LEFT_OUT_NAME
    note.write_text(f"The log has {len(data) >> 20} MiB; at most {max_bytes >> 20} MiB come back from a cluster.\n")
    return _archive(((str(path.relative_to(folder)), path) for path in (*kept, note)), "w:gz")


def unpack_attempt(data: bytes, folder: Path) -> None:
    """Unpack an archive of ``pack_attempt`` into a folder; the result, which marks the attempt as done, is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    with scratch.staging(folder) as fresh:
        _extract(data, fresh)
        files = [path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()]
        for name in sorted(files, key=lambda name: (name.name == RESULT_NAME, name)):
            (folder / name).parent.mkdir(exist_ok=True)
            (fresh / name).replace(folder / name)


def _archive(named: Iterable[tuple[str, Path]], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, path in named:
            archive.add(path, name)
    return buffer.getvalue()


def _extract(data: bytes, place: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(place, filter="data")
