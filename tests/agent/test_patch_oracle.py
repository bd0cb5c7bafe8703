"""Our apply_patch against the Codex CLI's: recorded answers everywhere, the program itself where it is installed."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.agent.patch_cases import Case, case
from tests.agent.patch_oracle import GOLDEN, Answer, ask, binary, difference, digest, ours

RECORDED_SEEDS = range(6000)
LIVE_SEEDS = range(6000, 8000)
SEEDS_FILE = GOLDEN / "apply_patch_seeds.txt"
CASES_FILE = GOLDEN / "apply_patch_cases.json"


def update(body: str) -> str:
    return f"*** Begin Patch\n*** Update File: f\n{body}\n*** End Patch\n"


def add(path: str) -> str:
    return f"*** Begin Patch\n*** Add File: {path}\n+x\n*** End Patch\n"


MARKERS = b"a\n*** End Patch\n*** Delete File: f\n*** End of File\n@@ x\nz\n"
# Written by hand to be read: what each is about, the content of the file f, and the patch.
CASES: dict[str, tuple[bytes, str]] = {
    "context keeps its own line ends": (b"a\r\nb\nc\r\nd\ne\r\n", update("@@\n a\n-b\n+B\n c\n-d\n+D\n e")),
    "new lines take the end of the first": (b"a\nb\r\nc\r\nd\r\ne\r\n", update("@@\n a\n-b\n+B\n c\n-d\n+D\n e")),
    "context keeps its own blanks": (b"a\nb  \r\nc\r\nd\r\n  e\r\n", update("@@\n a\n b\n-c\n+C\n-d\n e")),
    "a line replaced by itself": (b"a\nb\r\nc\r\n", update("@@\n-b\n+b\n-c\n+C")),
    "context that is not at the end": (b"a\nb\n\n", update("@@\n b\n+x\n*** End of File")),
    "added lines go to the end": (b"a\nb\n\n", update("@@\n+x")),
    "added lines with an anchor go to the end": (b"a\nb\n", update("@@ a\n+x")),
    "twice": (b"a\nb\n", update("@@\n+x\n@@\n+y")),
    "added lines, then an edit above": (b"a\nb\n", update("@@\n+x\n@@\n-a\n+A")),
    "a blank line that only ends the hunk": (b"a\nb", update("@@\n a\n-b\n+B\n")),
    "a blank line that stays in the middle": (b"a\nb", update("@@\n a\n-b\n \n+B")),
    "a blank line that goes, and one that comes": (b"a\nb", update("@@\n a\n-b\n+B\n+\n-")),
    "a blank line before the first hunk": (b"a\n", update("\n@@\n-a\n+b")),
    "no final line end": (b"a\nb", update("@@\n-a\n+c")),
    "every line goes": (b"a\n", update("@@\n-a")),
    "nothing changes": (b"a\nb\n", update("@@\n a")),
    "an empty file comes": (b"", "*** Begin Patch\n*** Add File: n\n*** End Patch"),
    "a file is added over another": (b"\xff\n", add("f")),
    "a file that is not UTF-8 goes": (b"\xff\n", "*** Begin Patch\n*** Delete File: f\n*** End Patch"),
    "a file that is not UTF-8 changes": (b"\xff\na\n", update("@@\n-a\n+b")),
    "moved, then changed": (b"a\n", update("*** Move to: g\n@@\n-a\n+b\n*** Update File: g\n@@\n-b\n+c")),
    "moved onto itself": (b"a\n", update("*** Move to: f\n@@\n-a\n+b")),
    "moved unchanged": (b"a\n", update("*** Move to: g")),
    "moved, with blanks behind": (b"a\n", update("*** Move to: g  \n@@\n-a\n+b")),
    "moved, with a blank in front": (b"a\n", update(" *** Move to: g\n@@\n-a\n+b")),
    "context that reads like the end": (MARKERS, update("@@\n a\n *** End Patch\n-*** Delete File: f\n+Q")),
    "context that reads like a section": (MARKERS, update("@@\n *** Delete File: f\n+Q")),
    "context that reads like the end of file": (MARKERS, update("@@\n *** End of File\n+Q")),
    "context that reads like an anchor": (MARKERS, update("@@\n @@ x\n+Q")),
    "context that reads like an anchor, first": (MARKERS, update(" @@ x\n-z\n+Q")),
    "a section with a blank in front": (b"a\n", update("@@\n-a\n+b\n  *** Add File: n\n+x")),
    "a section with a tab in front": (b"a\n", update("@@\n-a\n+b\n\t*** Add File: n\n+x")),
    "a section with blanks behind": (b"a\n", update("@@\n-a\n+b\n*** Add File: n   \n+x")),
    "more after the end of file": (b"a\nb\nc\n", update("@@\n-b\n+B\n*** End of File\n c")),
    "the end of file first": (b"a\nb\nc\n", update("*** End of File\n@@\n-c")),
    "the last lines, used up": (b"a\nb\nc\n", update("@@\n a\n-b\n-c\n+Z\n@@\n-c\n*** End of File")),
    "two anchors": (b"class A\ndef f\nx\nclass B\ndef f\nx\n", update("@@ class B\n@@ def f\n-x\n+y")),
    "a unified header": (b"a\nb\n", update("@@ -2,1 +2,1 @@\n-b\n+B")),
    "an anchor with blanks around": (b"  a\nb\n", update("@@   a  \n-b")),
    "hunks out of order": (b"alpha\nbeta\n", update("@@\n-beta\n@@\n-alpha\n+A")),
    "a path with blanks in front": (b"", add("  n")),
    "two patches": (b"a\n", add("n") + add("m")),
    "an environment": (b"a\n", "*** Begin Patch\n*** Environment ID: q\n*** Delete File: f\n*** End Patch"),
    "a heredoc": (b"a\n", "<<'EOF'\n*** Begin Patch\n*** Delete File: f\n*** End Patch\nEOF\n"),
    "a heredoc with another word": (b"a\n", "<<X\n*** Begin Patch\n*** Delete File: f\n*** End Patch\nX\n"),
    "a heredoc that ends in more": (b"a\n", "<<EOF\n*** Begin Patch\n*** Delete File: f\n*** End Patch\nxEOF"),
    "lower case": (b"a\n", "*** begin patch\n*** Delete File: f\n*** end patch"),
    "a carriage return in a line": (b"a\rb\nc\n", update("@@\n-a\rb\n+x")),
    "a form feed and a line separator": ("a\x0cb\u2028c\n".encode(), update("@@\n-a\x0cb\u2028c\n+x")),
    "punctuation": ("a \u2013 \u201cb\u201d\n".encode(), update('@@\n-a - "b"\n+x')),
    "a byte order mark": (b"\xef\xbb\xbfalpha\n", update("@@\n-alpha\n+x")),
    "indentation": (b"    a\n    b\n", update("@@\n a\n-b\n+B")),
    "a file that is not there": (b"a\n", "*** Begin Patch\n*** Add File: n\n+x\n*** Delete File: gone\n*** End Patch"),
    "cut off": (b"a\n", "*** Begin Patch\n*** Delete File: f\n"),
    "no path": (b"a\n", "*** Begin Patch\n*** Delete File: \n*** End Patch"),
    "nothing": (b"a\n", "*** Begin Patch\n*** End Patch"),
}
# Where ours is not the oracle's, on purpose, and why (docs/decisions/0010-apply-patch.md).
OURS = {"moved onto itself": {"f": b"b\n"}, "a carriage return in a line": {"f": b"x\nc\n"}}


def recorded_case(name: str) -> Case:
    content, patch = CASES[name]
    return Case({"f": content}, patch)


def renew(oracle: Path) -> None:
    """Ask the oracle again about every recorded case."""
    lines = []
    for seed in RECORDED_SEEDS:
        made = case(seed)
        answer = ask(made, oracle)
        lines.append(f"{seed} {digest(made.files, made.patch)} {'ok' if answer.ok else 'no'} {digest(answer.files)}\n")
    SEEDS_FILE.write_text("".join(lines))
    told = {}
    for name in CASES:
        answer = ask(recorded_case(name), oracle)
        told[name] = {
            "ok": answer.ok,
            "files": {path: data.decode("latin-1") for path, data in sorted(answer.files.items())},
        }
    CASES_FILE.write_text(json.dumps(told, indent=1, ensure_ascii=True) + "\n")


@pytest.fixture(scope="module", autouse=True)
def golden() -> None:
    if os.environ.get("GOLDEN_RENEW"):
        renew(binary())


def check(name: str, made: Case, answer: Answer) -> None:
    mine = ours(made)
    if name in OURS:
        assert mine.files == OURS[name]
        return
    assert difference(mine, answer.ok, mine.files == answer.files) is None


@pytest.mark.parametrize("name", CASES)
def test_golden_cases(name: str) -> None:
    told = json.loads(CASES_FILE.read_text())[name]
    check(
        name,
        recorded_case(name),
        Answer(told["ok"], {path: data.encode("latin-1") for path, data in told["files"].items()}),
    )


def test_golden_seeds() -> None:
    """What Codex answered to thousands of generated cases: the same bytes, or a reason."""
    wrong, kinds = [], Counter[str]()
    lines = SEEDS_FILE.read_text().splitlines()
    assert len(lines) == len(RECORDED_SEEDS)
    for line in lines:
        seed, made_digest, ok, files_digest = line.split()
        made = case(int(seed))
        assert digest(made.files, made.patch) == made_digest, (
            "the generator changed: renew the golden files (make golden)"
        )
        mine = ours(made)
        found = difference(mine, ok == "ok", digest(mine.files) == files_digest)
        wrong += [f"seed {seed}: {found}"] if found else []
        kinds[f"Codex {ok}, ours {'no' if mine.refused else 'ok'}"] += 1
    assert not wrong, "\n".join(wrong[:10])
    # The comparison is only worth something when there is enough of each.
    assert kinds["Codex ok, ours ok"] > 2500
    assert kinds["Codex no, ours no"] > 1000
    assert kinds["Codex no, ours ok"] > 500


@pytest.mark.codex
def test_the_recorded_answers_are_still_the_programs() -> None:
    oracle = binary()
    told = json.loads(CASES_FILE.read_text())
    for name in CASES:
        answer = ask(recorded_case(name), oracle)
        assert told[name] == {
            "ok": answer.ok,
            "files": {path: data.decode("latin-1") for path, data in answer.files.items()},
        }


@pytest.mark.codex
@pytest.mark.parametrize("start", range(LIVE_SEEDS.start, LIVE_SEEDS.stop, 200))
def test_the_program_itself(start: int) -> None:
    """Cases of which there is no record, so that ours cannot have been fitted to it."""
    oracle = binary()
    wrong = []
    for seed in range(start, start + 200):
        made = case(seed)
        answer, mine = ask(made, oracle), ours(made)
        found = difference(mine, answer.ok, mine.files == answer.files)
        wrong += [f"seed {seed}: {found}\n{made.patch}"] if found else []
    assert not wrong, "\n".join(wrong[:5])
