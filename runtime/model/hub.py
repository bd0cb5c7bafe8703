"""Checkpoints from the Hugging Face hub: downloaded into its shared cache, listed, located and verified.

A download resumes after a lost connection. After a killed download, complete files are kept and incomplete ones start again.
Downloads are hashed afterwards, because the client compares only sizes. That needs no network: in the cache, a file's blob is
named after its hash (SHA-256 of a large file, git's SHA-1 of a small one).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from runtime.errors import CheckpointError, DoesNotFit
from runtime.model.checkpoint import open_checkpoint
from runtime.model.config import read_config

# The repositories also contain the same weights in the original layout and in one for Metal.
FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "LICENSE*", "USAGE_POLICY*"]
NOT_FILES = ["original/*", "metal/*"]
READ_BYTES = 8 << 20
GIB = 1 << 30

# Called with (file name, bytes read of it so far).
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A gpt-oss checkpoint in the cache. ``problem`` says what is wrong with it, if anything."""

    repository: str
    revision: str
    path: Path
    size_bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a verification: files with the right hash, files whose hash is not known, and bytes read."""

    hashed_files: int
    unknown_files: int
    read_bytes: int


class _Silent(tqdm):
    """A progress bar that shows nothing, for listing what there is to download."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **{**named, "disable": True})  # type: ignore[no-untyped-call]


def pull(
    repository: str,
    revision: str | None = None,
    cache: Path | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Verified]:
    """Download a checkpoint and verify it; return its folder. Files that are there already are not downloaded again.

    ``cache`` None is the hub's shared cache. On a terminal the client shows the download's progress itself; ``progress`` is
    called while hashing. Raises CheckpointError if it cannot be downloaded or arrived damaged (damaged files are
    removed, so that the next pull downloads them again), and DoesNotFit if the disk is too full.
    """
    with _asking(repository):
        files = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=FILES,
            ignore_patterns=NOT_FILES,
            tqdm_class=_Silent,
            dry_run=True,
        )
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise CheckpointError(
            f"{repository} contains no *.safetensors: it is not a checkpoint that this runtime can read"
        )
    _require_disk(sum(file.file_size or 0 for file in files if file.will_download), cache)
    with _asking(repository):
        path = snapshot_download(
            repository,
            revision=files[0].commit_hash,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=FILES,
            ignore_patterns=NOT_FILES,
        )
    damaged, verified = _hash_files(Path(path), progress)
    for file in damaged:
        file.resolve().unlink()
        file.unlink()
    if damaged:
        names = ", ".join(file.name for file in damaged)
        raise CheckpointError(f"{names} arrived damaged and was removed: pull {repository} again")
    open_checkpoint(Path(path))
    return Path(path), verified


def verify(folder: Path, progress: Progress | None = None) -> Verified:
    """Hash every file of a checkpoint whose hash is known, and check every tensor. Raises CheckpointError."""
    damaged, verified = _hash_files(folder, progress)
    if damaged:
        names = ", ".join(file.name for file in damaged)
        raise CheckpointError(f"{names} in {folder} has a wrong hash: remove it and pull the model again")
    open_checkpoint(folder)
    return verified


def cached_models(cache: Path | None = None) -> list[CachedModel]:
    """Return the gpt-oss checkpoints in the cache, sorted by name; other models are left out."""
    try:
        info = scan_cache_dir(cache)
    except CacheNotFound:
        return []
    found = []
    for repository in info.repos:
        for revision in repository.revisions:
            try:
                read_config(revision.snapshot_path / "config.json")
            except CheckpointError:
                continue
            problem = None
            try:
                open_checkpoint(revision.snapshot_path)
            except CheckpointError as error:
                problem = str(error)
            found.append(
                CachedModel(
                    repository.repo_id,
                    revision.commit_hash,
                    revision.snapshot_path,
                    revision.size_on_disk,
                    problem,
                )
            )
    return sorted(found, key=lambda model: (model.repository, model.revision))


def locate(name: str, cache: Path | None = None) -> Path:
    """Return the folder of a checkpoint: ``name`` is a folder, or a downloaded repository. Uses no network.

    Raises CheckpointError if it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        path = snapshot_download(
            name, cache_dir=cache, local_files_only=True, allow_patterns=FILES, ignore_patterns=NOT_FILES
        )
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{name} is neither a folder nor a completely downloaded model: agent models pull {name}"
        ) from error
    return Path(path)


def _hash_files(folder: Path, progress: Progress | None) -> tuple[list[Path], Verified]:
    """Hash the files in the cache; return those whose hash is not the name of their blob, and the totals."""
    damaged, hashed, unknown, read = [], 0, 0, 0
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not files:
        raise CheckpointError(f"{folder} contains no files: there is nothing to verify")
    for file in files:
        blob = file.resolve()
        if blob.parent.name != "blobs":
            unknown += 1
            continue
        size = blob.stat().st_size
        digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(usedforsecurity=False)
        if len(blob.name) == 40:
            digest.update(b"blob %d\0" % size)  # git's hash includes this header
        with blob.open("rb") as stream:
            while part := stream.read(READ_BYTES):
                digest.update(part)
                if progress is not None:
                    progress(file.name, stream.tell())
        hashed += 1
        read += size
        if digest.hexdigest() != blob.name:
            damaged.append(file)
    return damaged, Verified(hashed, unknown, read)


def _require_disk(need_bytes: int, cache: Path | None) -> None:
    place = Path(cache or constants.HF_HUB_CACHE).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if need_bytes > free:
        raise DoesNotFit(
            f"the download needs {need_bytes / GIB:.1f} GiB and {place} has {free / GIB:.1f} GiB free: make room, or set "
            "HF_HOME to a folder on a larger disk"
        )


@contextmanager
def _asking(repository: str) -> Iterator[None]:
    """Translate the errors of the hub's client; its messages name the file and the status."""
    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(f"{repository!r} is not the name of a repository (owner/name): {error}") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{repository} cannot be downloaded: {type(error).__name__}: {reason}") from error
