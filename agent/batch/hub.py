"""Data sets of tasks: fetched from Hugging Face's hub into its common cache, and Parquet, the form they mostly come in."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pyarrow
import pyarrow.parquet
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils.tqdm import tqdm

from agent.errors import UsageError

ENDINGS = ("parquet", "jsonl", "json")
BATCH_ROWS = 100


class _Silent(tqdm):
    """A progress bar that shows nothing, where nobody would see it move."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **{**named, "disable": True})  # type: ignore[no-untyped-call]


def fetch(
    name: str, revision: str | None, split: str, endpoint: str | None = None, cache: Path | None = None
) -> list[Path]:
    """Fetch the files of a split of the data set OWNER/NAME, whatever is not in the cache yet; return them in order.

    A split that several configurations have is ``CONFIGURATION/SPLIT``. ``endpoint`` None is the hub itself, or what HF_ENDPOINT says. Without
    a network the cache's are returned. Raises UsageError.
    """
    names = [f"{split}{rest}.{ending}" for rest in ("", "-*", "/*") for ending in ENDINGS]
    try:
        folder = Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                endpoint=endpoint,
                cache_dir=cache,
                tqdm_class=None if sys.stderr.isatty() else _Silent,
                allow_patterns=[*names, *(f"*/{each}" for each in names)],
            )
        )
        files = [path for path in sorted(folder.rglob("*")) if _split(path.relative_to(folder)).endswith(f"/{split}")]
        if not files:
            every = HfApi(endpoint).list_repo_files(name, repo_type="dataset", revision=revision)
            splits = ", ".join(sorted({found.lstrip("/") for each in every if (found := _split(Path(each)))}))
            raise UsageError(f"the data set {name} has no split {split!r}; it has {splits or 'none that can be read'}")
    except HFValidationError as error:
        raise UsageError(f"{name!r} is not the name of a data set (OWNER/NAME): {error}") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"the data set {name} cannot be fetched: {type(error).__name__}: {reason}") from error
    if len(configurations := sorted({_split(path.relative_to(folder)).lstrip("/") for path in files})) > 1:
        raise UsageError(
            f"the data set {name} has several of {split!r}: say which of {', '.join(configurations)}, "
            f"as hf:{name}:{configurations[0]}"
        )
    parts = re.search(r"-of-(\d+)", files[0].name)
    if parts and len(files) != int(parts[1]):
        raise UsageError(
            f"only {len(files)} of {int(parts[1])} parts of {configurations[0]} of {name} are there: fetch it again"
        )
    return files


def _split(path: Path) -> str:
    """Return the split that a file is a part of, with its configuration's folders, "" where it is of none: ``/data/test``."""
    if path.suffix.lstrip(".") not in ENDINGS:
        return ""
    stem = re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", path.stem)
    whole = stem != path.stem or not path.stem.isdigit()
    return str(Path("/", path.parent, stem) if whole else Path("/", path.parent))


def read_parquet(path: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a Parquet file, each without its empty cells. Raises UsageError where it is none."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    yield {key: value for key, value in row.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{path} is not a Parquet file that can be read: {error}") from error
