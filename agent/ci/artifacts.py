"""The folder that the fixing job passes to the publishing job, which does not trust it.

::

    result.json    what was observed (docs/schemas/result.schema.json)
    events.jsonl   the run's log
    patch.diff     the change, if there is one
    report.html    the run as a page
    summary.md     the run as Markdown, with the marker of its issue or pull request
    junit.xml      checks and outcome

The reader trusts none of it: files that are not regular, small and well-formed are refused, texts are rendered again from the log,
and the patch is checked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.ci.request import Request
from agent.errors import LogError, PolicyRefused, UsageError
from agent.events import Outcome
from agent.log import LOG_NAME, parse
from agent.report.markdown import code, run_markdown, story_markdown
from agent.report.story import tell
from agent.runs import PATCH_NAME
from agent.saver import write_whole

RESULT_NAME = "result.json"
SUMMARY_NAME = "summary.md"
PAGE_NAME = "report.html"
JUNIT_NAME = "junit.xml"
IGNORED = "ignored"
OUTCOMES = (*(outcome.value for outcome in Outcome), "usage", IGNORED)
MAX_RESULT_BYTES = 8 << 20
MAX_LOG_BYTES = 64 << 20
MAX_PATCH_BYTES = 4 << 20
REASON_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Found:
    """The content of the artifacts. ``report`` is rendered from the log; ``base_commit`` is where, according to the log, the run began.

    Both are "" if no run began; ``patch`` is b"" if there is none.
    """

    outcome: str
    reason: str
    base_commit: str
    report: str
    patch: bytes


def prepare(out: Path) -> None:
    """Make the folder, or remove an earlier run's files from it. Raises UsageError if it contains anything else."""
    ours = {RESULT_NAME, LOG_NAME, PATCH_NAME, PAGE_NAME, SUMMARY_NAME, JUNIT_NAME}
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - ours):
        raise UsageError(f"--out {out}: it exists and contains other files. Name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    for name in ours:
        (out / name).unlink(missing_ok=True)


def write(out: Path, record: Mapping[str, Any], asked: Request | None, run: Path | None) -> None:
    """Write the result of an event. ``run`` is the run's folder, None if none began."""
    patch = b""
    text = f"### ❌ {record['outcome']}\n\n- {code(str(record['reason']))}\n"
    if run is not None:
        from agent.report.junit import run_junit
        from agent.report.page import run_page

        shutil.copyfile(run / LOG_NAME, out / LOG_NAME)
        if (run / PATCH_NAME).is_file() and record["outcome"] != Outcome.REFUSED:
            patch = (run / PATCH_NAME).read_bytes()
            write_whole(out / PATCH_NAME, patch)
        write_whole(out / PAGE_NAME, run_page(run).encode())
        write_whole(out / JUNIT_NAME, run_junit(run).encode())
        text = run_markdown(run)
    lead = f"{asked.marker}\n" if asked is not None else ""
    write_whole(out / SUMMARY_NAME, (lead + text).encode())
    about = _about(asked, patch) if asked is not None else None
    write_whole(out / RESULT_NAME, json.dumps({**record, "ci": about}, indent=1).encode() + b"\n")


def _about(asked: Request, patch: bytes) -> dict[str, Any]:
    return {
        "service": asked.service,
        "project": asked.project,
        "kind": asked.kind,
        "number": asked.number,
        "branch": asked.branch,
        "marker": asked.marker,
        "patch_bytes": len(patch),
        "patch_sha256": hashlib.sha256(patch).hexdigest() if patch else None,
    }


def read(folder: Path) -> Found | None:
    """Return the content of the artifacts, None if there is no result. Raises PolicyRefused for anything that we do not write."""
    data = _plain_file(folder / RESULT_NAME, MAX_RESULT_BYTES)
    if data is None:
        return None
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PolicyRefused(f"the artifact's {RESULT_NAME} is not JSON: {error}") from error
    outcome, reason = (record.get(key) if isinstance(record, dict) else None for key in ("outcome", "reason"))
    if outcome not in OUTCOMES or not isinstance(reason, str):
        raise PolicyRefused(f"the artifact's {RESULT_NAME} is not a result: its outcome is {str(outcome)[:80]!r}")
    patch = _plain_file(folder / PATCH_NAME, MAX_PATCH_BYTES) or b""
    base_commit, report = _told(folder, outcome, patch)
    return Found(outcome, reason[:REASON_CHARS], base_commit, report, patch)


def _told(folder: Path, outcome: str, patch: bytes) -> tuple[str, str]:
    """Return the base commit in the log, and the log as Markdown; two empty texts if there is no log."""
    data = _plain_file(folder / LOG_NAME, MAX_LOG_BYTES)
    if data is None:
        return "", ""
    try:
        story = replace(tell(parse(data, f"the artifact's {LOG_NAME}")[0]), patch=patch)
        report = story_markdown(story)
    # A record may have the right types and still not be one of ours: a NaN as a time, or an impossible nesting depth.
    except (LogError, RecursionError, TypeError, ValueError, OverflowError) as error:
        raise PolicyRefused(f"the artifact's {LOG_NAME} is not one of ours: {error}") from error
    if story.ended is None or story.ended.outcome != outcome:
        raise PolicyRefused(f"the artifact contradicts itself: {RESULT_NAME} says {outcome}, its log {story.state}")
    return story.base_commit, report


def _plain_file(path: Path, most_bytes: int) -> bytes | None:
    """Return a regular file's content, None if it does not exist. An artifact may contain links, pipes and terabytes under any name."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PolicyRefused(f"the artifact's {path.name} is not a regular file: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise PolicyRefused(f"the artifact's {path.name} is not a regular file")
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise PolicyRefused(f"the artifact's {path.name} has more than {most_bytes >> 20} MiB")
    return data
