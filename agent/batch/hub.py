"""Data sets of tasks: downloads them from the Hugging Face hub into its shared cache, and reads Parquet, their usual format."""

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
    """A progress bar that shows nothing."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **{**named, "disable": True})  # type: ignore[no-untyped-call]


def fetch(
    name: str, revision: str | None, split: str, endpoint: str | None = None, cache: Path | None = None
) -> list[Path]:
    """Download the files of a split of the data set OWNER/NAME that are not in the cache yet; return all of them in order.

    If several configurations have the split, it is given as ``CONFIGURATION/SPLIT``. ``endpoint`` None is the hub itself, or
    HF_ENDPOINT. Without a network the cached files are returned. Raises UsageError.
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
        raise UsageError(f"the data set {name} cannot be downloaded: {type(error).__name__}: {reason}") from error
    if len(configurations := sorted({_split(path.relative_to(folder)).lstrip("/") for path in files})) > 1:
        raise UsageError(
            f"several configurations of the data set {name} have the split {split!r}: choose one of "
            f"{', '.join(configurations)}, as hf:{name}:{configurations[0]}"
        )
    parts = re.search(r"-of-(\d+)", files[0].name)
    if parts and len(files) != int(parts[1]):
        raise UsageError(
            f"only {len(files)} of {int(parts[1])} parts of {configurations[0]} of {name} are there: download it again"
        )
    return files


def _split(path: Path) -> str:
    """Return the split that a file belongs to, with its configuration's folders (``/data/test``); "" if it belongs to none."""
    if path.suffix.lstrip(".") not in ENDINGS:
        return ""
    stem = re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", path.stem)
    whole = stem != path.stem or not path.stem.isdigit()
    return str(Path("/", path.parent, stem) if whole else Path("/", path.parent))


def read_parquet(path: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a Parquet file, each without its empty cells. Raises UsageError if it is not one."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    yield {key: value for key, value in row.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as a Parquet file: {error}") from error
