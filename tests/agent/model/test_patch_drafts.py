"""Patches are drafted from what the conversation shows: what comes next, in the tokens that the model would write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import RunConfig
from agent.conversation import Channel, Conversation, Message, Role
from agent.events import Retried
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL, is_text
from agent.model.base import Chunk, SamplingParams
from agent.model.local import ENGINE, LocalOptions, LocalSource, open_local
from agent.model.open import open_model
from agent.model.patch_drafts import (
    DRAFT_CHARS,
    LINE_CHARS,
    PATHS,
    PRIORS,
    TAIL_CHARS,
    TEXTS_CHARS,
    PatchDrafter,
    PatchDrafts,
)
from agent.model.raw import RawModel

FILE = '''\
import os


def area(width, height):
    """Return the area."""
    if width < 0 or height < 0:
        raise ValueError("a side is negative")
    return width * height


def edge(width, height):
    """Return the length of the edge."""
    total = width + height
    return total + total


def volume(width, height, depth):
    return area(width, height) * depth
'''
BEGIN = "*** Begin Patch\n*** Update File: src/shapes.py\n@@\n"
HERE = f"{BEGIN}     if width < 0 or height < 0:\n"


def asked(path: str) -> Message:
    return Message(Role.ASSISTANT, json.dumps({"path": path}), Channel.COMMENTARY, "repo_browser.open_file")


def read(text: str = FILE, path: str = "src/shapes.py") -> tuple[Message, Message]:
    return asked(path), Message(Role.TOOL, text)


def drafter(codec: Codec, messages: Sequence[Message]) -> PatchDrafter:
    return PatchDrafts(codec.encode, codec.token_bytes).drafter(messages)


def drafted(codec: Codec, said: str, *messages: Message) -> str:
    """Return what is drafted once the model has said a text."""
    made = drafter(codec, messages or read())
    for token in codec.encode(said):
        made.take(token)
    return codec.decode([token for token, _ in made.draft()])


def within_json(text: str) -> str:
    return f'{{"patch": "{json.dumps(text)[1:-1]}'


@pytest.mark.parametrize(
    ("said", "comes"),
    [
        (HERE, '         raise ValueError("a side is negative")\n     return width * height\n \n'),
        (f"{HERE}-", '        raise ValueError("a side is negative")\n-    return width * height\n'),
        (f"{HERE}-        raise Val", 'ueError("a side is negative")\n-    return width'),
        (f"{BEGIN}         raise", ' ValueError("a side is negative")\n     return width'),
        (f"{BEGIN}@@ def ed", "ge(width, height"),
        (f"{BEGIN}@@ def edge(width, height):\n", '     """Return the length of the edge."""\n     total'),
        (f"{BEGIN}@@ def edge(width, height):\n     ret", "urn total + total"),
        (f"{HERE}+    # ret", ""),
    ],
)
def test_kept_and_removed_lines_say_where_the_patch_is(codec: Codec, said: str, comes: str) -> None:
    assert drafted(codec, said).startswith(comes)
    whole = drafted(codec, within_json(said))
    assert whole.startswith(json.dumps(comes)[1:-1].removesuffix("\\n")), "in a call, the draft is escaped"
    assert bool(whole) == bool(comes)


REMOVED = (
    f"{BEGIN} def edge(width, height):\n" + '-    """Return the length of the edge."""\n-    total = width + height\n'
)


@pytest.mark.parametrize(
    ("said", "comes"),
    [
        ("+", '    """Return the length of the edge."""\n+    total = width + height\n     return total + total\n'),
        ('+    """Return the', ' length of the edge."""\n+    total = width + height\n     return total'),
        ('+    """Return the total length', ' of the edge."""\n+    total'),
        ("+    tot", "al = width + height\n     return total + total\n"),
        ('+    """Return the length."""\n', "+    total = width + height\n     return total + total\n"),
        ('+    """Return the length."""\n+    total = abs(width)\n', "     return total + total\n"),
        ("     retu", "rn total + total\n"),
        ("+    if width < 0 or", " height < 0"),
    ],
)
def test_added_lines_follow_the_removed_ones(codec: Codec, said: str, comes: str) -> None:
    assert drafted(codec, REMOVED + said).startswith(comes)
    assert drafted(codec, within_json(REMOVED + said)).startswith(json.dumps(comes)[1:-1].removesuffix("\\n"))


def test_a_patch_begins_with_the_file_read_last_and_goes_on_with_another(codec: Codec) -> None:
    messages = (*read("x = 1\n", "setup.py"), *read())
    assert drafted(codec, "*** Begin Patch\n", *messages).startswith("*** Update File: src/shapes.py\n")
    assert drafted(codec, "*** Begin Patch\n*** Update File: s", *messages).startswith("rc/shapes.py\n")
    assert drafted(codec, "*** Begin Patch\n*** Update File: se", *messages).startswith("tup.py\n")
    assert drafted(codec, f"{HERE}*** Up", *messages).startswith("date File: setup.py\n")
    assert drafted(codec, f"{HERE}*** Add", *messages) == ""


def test_the_file_as_it_was_read_last_counts(codec: Codec) -> None:
    changed = FILE.replace("a side is negative", "no side may be negative")
    assert "no side may" in drafted(codec, HERE, *read(), *read(changed))
    assert "a side is" in drafted(codec, HERE, *read(changed), *read())
    patch = f'{HERE}-        raise ValueError("a side is negative")\n+        raise ValueError("changed")\n     return width\n*** End Patch'
    call = Message(Role.ASSISTANT, json.dumps({"patch": patch}), Channel.COMMENTARY, "repo_browser.apply_patch")
    assert 'ValueError("changed")' in drafted(codec, HERE, *read(), call), "as the patch left it"


def test_a_hunk_goes_on_below_the_one_before(codec: Codec) -> None:
    """The line stands in the file twice."""
    text = "".join(f"def f{n}():\n    begin()\n    x = {n}\n    end()\n\n\n" for n in range(9))
    said = f"{BEGIN} def f3():\n     begin()\n-    x = 3\n+    x = 4\n@@\n     begin()\n"
    assert drafted(codec, said, *read(text)).startswith("     x = 4\n     end()\n")


def test_numbers_of_lines_do_not_matter(codec: Codec) -> None:
    numbered = "".join(f"{n:6}\t{line}\n" for n, line in enumerate(FILE.split("\n"), 1))
    assert drafted(codec, HERE, *read(numbered)) == drafted(codec, HERE, *read())


@pytest.mark.parametrize(
    "said",
    [
        "The next line is:\n     if width < 0 or height < 0:\n",
        f"{HERE}*** End Patch\n",
        f"{HERE}*** End Patch\n     if width < 0 or height < 0:\n",
        f"{HERE}nonsense\n",
        f"{HERE}+{'x' * LINE_CHARS}",
        f"{HERE}+{'x' * LINE_CHARS}\n     if width < 0 or height < 0:\n",
        within_json(HERE) + "\\q\\n",
        within_json(HERE) + "\\",
        "*** Begin Patch",
    ],
)
def test_there_is_no_draft_outside_of_a_patch(codec: Codec, said: str) -> None:
    assert drafted(codec, said) == ""


def test_a_control_token_ends_the_patch(codec: Codec) -> None:
    made = drafter(codec, read())
    for token in codec.encode(HERE):
        made.take(token)
    assert made.draft()
    made.take(CALL)
    assert made.draft() == ()


def test_an_escaped_backslash_before_an_n_ends_no_line(codec: Codec) -> None:
    text = 'begin()\nprint("a\\nb")\nend()\n'
    said = within_json(f"{BEGIN} begin()\n")
    assert drafted(codec, said, *read(text)).startswith(r" print(\"a\\nb\")\n end()")
    assert drafted(codec, said + r" print(\"a\\nb\")\n", *read(text)).startswith(" end()")


def rightly(codec: Codec, patch: str, body: str) -> float:
    """Return how many of a body's tokens were drafted at some place before them, as they came."""
    made = drafter(codec, read())
    ids, right, drafts = codec.encode(body), 0, [0]
    for token in ids:
        right += bool(drafts) and drafts[0] == token
        made.take(token)
        drafts = [guess for guess, _ in made.draft()]
    return right / len(ids)


@pytest.mark.parametrize("form", [str, within_json])
def test_most_tokens_of_a_patch_are_those_that_were_drafted(codec: Codec, form: type[str]) -> None:
    """The tokens of the whole are compared, so a line end or an indentation must merge as it does there."""
    kept = "".join(f" {line}\n" for line in FILE.split("\n")[3:-1])
    changed = kept.replace(" " * 5 + "total =", "-    total =").replace("     return total", "+    return total")
    for hunk in (kept, changed):
        patch = f"{BEGIN}{hunk}*** End Patch\n"
        assert rightly(codec, patch, form(patch)) > 0.75


def test_a_message_is_read_once_and_only_the_latest_are(codec: Codec) -> None:
    drafts = PatchDrafts(codec.encode, codec.token_bytes)
    first, second = read(), read("y = 2\n")
    texts = drafts.drafter(first)._texts
    assert drafts.drafter((*first, *second))._texts[1] is texts[0]
    assert drafts.drafter(read())._texts == texts  # equal messages, as a server gets them
    assert drafts.drafter(read())._texts[0] is texts[0]
    long = Message(Role.TOOL, "x\n" * (TEXTS_CHARS // 2))
    assert len(drafts.drafter((*first, *second))._texts) == 2
    assert len(drafts.drafter((*first, long))._texts) == 1
    assert drafts.drafter((*first, long, *second))._texts[0].lines[0] == "y = 2"
    assert drafts.drafter(())._texts == []


def test_of_many_paths_the_latest_are_known(codec: Codec) -> None:
    made = drafter(codec, [asked(f"f{n}.py") for n in range(2 * PATHS)])
    assert made._paths == tuple(f"f{n}.py" for n in reversed(range(PATHS, 2 * PATHS)))


def test_only_the_end_of_a_long_line_is_encoded_again(codec: Codec) -> None:
    """Encoding takes quadratic time where there are no spaces."""
    lengths: list[int] = []

    def encode(text: str) -> list[int]:
        lengths.append(len(text))
        return codec.encode(text)

    line = "".join(chr(0x4E00 + 37 * n % 9000) for n in range(900))
    made = PatchDrafts(encode, codec.token_bytes).drafter(read(line))
    for token in codec.encode(f"{BEGIN} {line[:700]}"):
        made.take(token)
    drafted = codec.decode([token for token, _ in made.draft()])
    assert drafted
    assert line[700:].startswith(drafted.rstrip("\ufffd")), "a character may have several tokens"
    assert max(lengths) <= TAIL_CHARS + DRAFT_CHARS


lines = st.lists(
    st.sampled_from(["", " ", "x", "  x = 1", '\t"\\n"', "\\", "é\u2028", "@@", "*** Update File: a", "x" * 300, "\r"])
    | st.text(max_size=5),
    max_size=8,
).map("\n".join)
spoken = st.lists(
    st.sampled_from(
        ["*** Begin Patch\n", "*** Begin Patch\\n", "*** Update File: a.py\n", "*** End Patch\n", "@@\n", "@@ x\n"]
    )
    | st.sampled_from(["\n", "\\n", "\\", " ", "-", "+", " x\n", "-x\n", "+x\\n", "-  x", '"', "\\u00"])
    | st.text(max_size=3),
    max_size=25,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines, max_size=3), spoken, st.lists(st.integers(0, 201_087), max_size=5), st.booleans())
def test_whatever_was_read_and_is_said_a_draft_is_of_text_tokens(
    codec: Codec, texts: list[str], said: str, strange: list[int], begun: bool
) -> None:
    messages = [message for text in texts for message in read(text, "a.py")]
    made = drafter(codec, messages)
    for token in (*codec.encode(f"{BEGIN * begun}{said}"), *strange):
        made.take(token)
        for guess, kind in made.draft():
            assert is_text(guess)
            assert kind in PRIORS


class Deaf:
    """A source that answers nothing and keeps what it was asked with."""

    name, context_tokens, capabilities = "deaf", 4096, ENGINE

    def __init__(self) -> None:
        self.params: list[SamplingParams] = []

    def generate(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> list[Chunk | Retried]:
        self.params.append(params)
        return [Chunk((), "length")]

    def close(self) -> None:
        pass


def test_each_sample_has_a_drafter_that_knows_the_conversation(codec: Codec) -> None:
    source = Deaf()
    model = RawModel(codec, source, drafts=PatchDrafts(codec.encode, codec.token_bytes))
    list(model.sample(Conversation(messages=(Message(Role.USER, "Go."), *read())), SamplingParams()))
    drafters = [params.drafter for params in source.params]
    assert len(drafters) > 1, "it was sampled again"
    assert len({id(made) for made in drafters}) == len(drafters)
    for made in drafters:
        assert made is not None
        for token in codec.encode(HERE):
            made.take(token)
        assert made.draft()
    list(RawModel(codec, source).sample(Conversation(messages=read()), SamplingParams()))
    assert source.params[-1].drafter is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from runtime.model.checkpoint import Layout
    from runtime.model.tiny import HARMONY_VOCABULARY, tiny_config, write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, Layout.HUGGING_FACE, tiny_config(HARMONY_VOCABULARY, layers=2))
    return folder


class Insistent:
    """Drafts a known answer, with errors."""

    def __init__(self, answer: Sequence[int]) -> None:
        self.priors = {"": 0.98}
        self.answer, self.taken, self.drafts = answer, 0, 0

    def take(self, _: int) -> None:
        self.taken += 1

    def draft(self) -> list[tuple[int, str]]:
        self.drafts += 1
        return [(token + (place % 9 == 8), "") for place, token in enumerate(self.answer)][self.taken :]


def test_the_engine_asks_the_drafter_and_says_what_it_says_without_one(codec: Codec, checkpoint: Path) -> None:
    source = open_local(checkpoint, LocalOptions(device="cpu", cache_bytes=4 << 20, context_tokens=256))

    def said(drafter: Insistent | None) -> list[int]:
        stream = source.generate(codec.encode(HERE), SamplingParams(seed=3, max_tokens=60, drafter=drafter), ())
        return [token for chunk in stream if isinstance(chunk, Chunk) for token in chunk.ids]

    try:
        plain = said(None)
        insistent = Insistent(plain)
        assert said(insistent) == plain
        assert insistent.taken > 30
        assert insistent.drafts > 3
    finally:
        source.close()


def test_the_bundled_engine_gets_drafts_of_what_the_agent_has_read(
    codec: Codec, checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[SamplingParams] = []
    generate = LocalSource.generate

    def noting(source: LocalSource, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> object:
        given.append(params)
        return generate(source, prompt, params, stop)

    monkeypatch.setattr(LocalSource, "generate", noting)
    model = open_model(RunConfig(wire="local", model=str(checkpoint), context_tokens=1024, cache_dir=cache_dir))
    try:
        list(model.sample(Conversation(messages=read()), SamplingParams(seed=1, max_tokens=5)))
    finally:
        model.close()
    made = given[0].drafter
    assert made is not None
    made_again = drafter(codec, read())
    for token in codec.encode(HERE):
        made.take(token)
        made_again.take(token)
    assert made.draft() == made_again.draft() != ()
