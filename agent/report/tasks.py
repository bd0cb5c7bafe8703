"""The data of a batch's report: its results as frozen rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.batch.attempt import Attempt, Kind, from_record
from agent.batch.grade import REPORT_NAME
from agent.batch.results import SETTINGS_NAME, Record, read_results
from agent.errors import LogError

PAGE_NAME = "report.html"
GRADES = "grades"


@dataclass(frozen=True, slots=True)
class Row:
    """A task. ``resolved`` is its grade, None if it was not graded; ``links`` are its attempts' pages, "" for those without one."""

    task: str
    kind: Kind
    reason: str
    kept: int
    attempts: tuple[Attempt, ...]
    links: tuple[str, ...]
    language: str = ""
    difficulty: str = ""
    duration_s: float = 0.0
    sampled_tokens: int = 0
    total_tokens: int = 0
    resolved: bool | None = None

    @property
    def turns(self) -> int:
        """Turns of the attempt that was kept."""
        return next((each.turns for each in self.attempts if each.attempt == self.kept), 0)

    @property
    def link(self) -> str:
        """The page of the attempt that was kept."""
        numbered = zip(self.attempts, self.links, strict=True)
        return next((link for attempt, link in numbered if attempt.attempt == self.kept), "")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch's tasks by name, and their common settings. ``base`` is the prefix of all links."""

    name: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""


def read_batch(out: Path) -> Batch:
    """Read a batch's folder. Raises UsageError if there are no results, LogError if they are damaged."""
    records = read_results(out)
    grades = _json(out / GRADES / REPORT_NAME)
    graded = [*grades.get("completed_ids", ()), *grades.get("empty_patch_ids", ())]
    resolved = {name: name in grades.get("resolved_ids", ()) for name in graded}
    return tell_batch(out.absolute().name, records, _json(out / SETTINGS_NAME), resolved)


def tell_batch(
    name: str, records: Mapping[str, Record], settings: Mapping[str, Any], resolved: Mapping[str, bool]
) -> Batch:
    """Return the batch for the records that ``read_results`` returned."""
    return Batch(name, tuple(_row(records[task], resolved.get(task)) for task in sorted(records)), settings)


def _row(record: Record, resolved: bool | None) -> Row:
    task, attempts = record["task"], tuple(from_record(each) for each in record["attempts"])
    return Row(
        task,
        Kind(record["class"]),
        record["reason"],
        record["kept"],
        attempts,
        tuple(f"tasks/{task}/{each.attempt}/{each.run}/{PAGE_NAME}" if each.run else "" for each in attempts),
        record["language"],
        record["difficulty"],
        record["duration_s"],
        record["sampled_tokens"],
        record["total_tokens"],
        resolved,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LogError(f"{path} is not JSON: {error}") from error
    return data if isinstance(data, dict) else {}
