"""The texts that are published: our own words, and strangers' words only as code, where they have no effect.

The text of a commit or pull request has effects: it closes issues, notifies people, skips CI. So titles keep only letters and
digits of a stranger's text, and everything else is quoted as code by agent/report/markdown.py. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.ci.request import Request
from agent.events import Outcome
from agent.report.markdown import code

if TYPE_CHECKING:
    from agent.ci.artifacts import Found

SUBJECT_CHARS = 72
FOOTER = "\n---\nMade by gpt-oss-agent. Observations are kept apart from what the model claims. Review this as you would a stranger's patch.\n"
NO_RESULT = "the job that should fix this ended without a result; see its log"


def title(asked: Request) -> str:
    """Return the subject of the commit and the title of the pull request: no #1, GH-1, @, URL or bracket that a service obeys."""
    words = " ".join(re.sub(r"[^\w .,'()=+-]|\bGH-(?=\d)", " ", asked.title, flags=re.IGNORECASE).split())
    subject = f"Fix {words}" if asked.kind == "check" else words
    if len(subject) > SUBJECT_CHARS:
        subject = subject[: SUBJECT_CHARS - 1].rsplit(" ", 1)[0] + "…"
    return subject or f"Change for {asked.kind} {asked.number}"


def about(asked: Request, *, fixed: bool) -> str:
    """Return the reference to what the change is for. It closes an issue only if the checks pass."""
    if asked.number is None:
        return f"For the failing check on {code(asked.target or '')}."
    sign = "!" if asked.service == "gitlab" and asked.kind != "issue" else "#"
    return f"{'Fixes' if fixed and asked.kind == 'issue' else 'For'} {sign}{asked.number}."


def proposal(asked: Request, found: Found) -> str:
    """Return the text of the pull request."""
    fixed = found.outcome == Outcome.PASSED
    return f"{asked.marker}\n{about(asked, fixed=fixed)}\n\n{found.report}{FOOTER}"


def answer(asked: Request, found: Found | None, proposed: str | None, refused: str | None = None) -> str:
    """Return the comment that answers the request: where the change is, or why there is none."""
    if refused is not None:
        text = f"### ❌ refused: nothing was published\n\n- {code(refused)}\n"
    elif found is None:
        text = f"### ❌ {NO_RESULT}\n"
    elif proposed is not None:
        text = f"A change is proposed in {proposed}: {found.outcome}.\n\n- {code(found.reason)}\n"
    elif found.report:
        text = found.report
    else:
        text = f"### ❌ {found.outcome}: the run could not start\n\n- {code(found.reason)}\n"
    return f"{asked.marker}\n{text}"
