"""The results of a batch: an append-only file with one line per task, and the files derived from it.

A task is done once its line is on disk. An incomplete last line, left by a crash, is removed when the file is opened.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from agent.batch.attempt import Kind, from_record
from agent.errors import LogError, UsageError
from agent.runs import PATCH_NAME
from agent.saver import write_whole

RESULTS_NAME = "results.jsonl"
SETTINGS_NAME = "batch.json"
Record = dict[str, Any]
# The fields of a line that are read again; agent/batch/batch.py writes it.
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("task", "class", "outcome", "reason", "folder", "model", "language", "difficulty"), str),
    **dict.fromkeys(("kept", "sampled_tokens", "total_tokens"), int),
    "duration_s": (int, float),
    "attempts": list,
}


class Results:
    """The only writer of a batch's results. Holds an exclusive lock until closed; a context manager.

    Raises LogError if the file cannot be used, or another batch is running in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / RESULTS_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LogError(f"the results {self._path} cannot be opened: {error.strerror}") from error
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LogError(f"another batch is running in {folder}: wait for it, or give another --out") from error
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole != len(data):
                os.ftruncate(self._file, whole)
            self.records = _parse(data[:whole], self._path)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Write a task's line; it is on disk when this returns. Raises LogError if it cannot be written."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        end = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:  # a disk that fills up may accept only a part
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            raise LogError(
                f"{self._path} cannot be written: {error.strerror}; free space, then run it again"
            ) from error
        self.records[record["task"]] = record

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_results(folder: Path) -> dict[str, Record]:
    """Return the latest record of every task. Raises UsageError if there are no results, LogError if they are damaged."""
    path = folder / RESULTS_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}; `agent tasks run --out {folder}` makes it"
        ) from error
    return _parse(data[: data.rfind(b"\n") + 1], path)


def _parse(data: bytes, path: Path) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            record = _record(line)
        except (ValueError, TypeError, KeyError) as error:
            raise LogError(
                f"{path}, line {number}, is not the result of a task, or comes from another version ({type(error).__name__}: {error}): {line[:80]!r}. "
                "Give another --out, or remove the line; its task is then run again"
            ) from error
        records[record["task"]] = record
    return records


def _record(line: bytes) -> Record:
    """Return a line's record. Raises ValueError, TypeError or KeyError if it is not a record of this version."""
    record: Record = dict(json.loads(line))
    for key, kind in FIELDS.items():
        if not isinstance(record[key], kind):
            raise TypeError(f"{key} is {record[key]!r}")
    Kind(record["class"])
    for attempt in record["attempts"]:
        from_record(dict(attempt))
    return record


def patch_of(folder: Path, record: Mapping[str, Any]) -> bytes:
    """Return the patch that was kept for a task, b"" if there is none."""
    try:
        return (folder / record["folder"] / PATCH_NAME).read_bytes() if record["folder"] else b""
    except FileNotFoundError:
        return b""


def derive(folder: Path, records: Mapping[str, Record]) -> None:
    """Write ``preds.json`` and ``all_preds.jsonl``: the patches in SWE-bench's format."""
    rows = [
        {
            "instance_id": name,
            "model_name_or_path": record["model"],
            "model_patch": patch_of(folder, record).decode("utf-8", "surrogateescape"),
        }
        for name, record in sorted(records.items())
    ]
    by_name = {row["instance_id"]: row for row in rows}
    write_whole(folder / "preds.json", json.dumps(by_name, indent=1).encode())
    write_whole(folder / "all_preds.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def hold_to(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store the settings that affect results; raise UsageError if the batch was started with different ones.

    Raises LogError if the stored settings cannot be read.
    """
    path = folder / SETTINGS_NAME
    if not path.exists():
        write_whole(path, json.dumps(settings, indent=1).encode())
        return
    try:
        before = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise LogError(f"{path} does not contain the settings of a batch: {error}; give another --out") from error
    plain = json.loads(json.dumps(settings))
    other: Iterable[str] = (key for key in sorted({*before, *plain}) if before.get(key) != plain.get(key))
    if said := ", ".join(f"{key} was {before.get(key)!r} and is {plain.get(key)!r}" for key in other):
        raise UsageError(
            f"the batch in {folder} was started with other settings ({said}): use the same ones, or another --out"
        )
