"""What a model is held to while it writes a patch, against the reader of patches."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.patch.grammar import PATCH
from agent.patch.model import EXAMPLE, Fault, PatchError
from agent.patch.parse import parse
from benchmarks.constrained import patch as reference_patches
from tests.agent.patch_cases import case


def fault(text: str) -> Fault | None:
    try:
        parse(text)
    except PatchError as error:
        return error.fault
    return None


@given(st.from_regex(PATCH, fullmatch=True))
def test_what_matches_is_a_patch_but_for_where_it_leads(text: str) -> None:
    assert fault(text) in {None, Fault.PATH}


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE,
        EXAMPLE + "\n",
        reference_patches(),
        "*** Begin Patch\n*** Add File: a\n*** End Patch",
        "*** Begin Patch\n*** Add File: a b.txt\n+\n+x\n*** Delete File: c\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n*** Move to: b\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n*** Move to: b\n@@\n-x\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n x\n\n-y\n*** End of File\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n@@ class A:\n@@ def f():\n-x\n@@\n+y\n*** End Patch",
    ],
)
def test_what_models_are_asked_to_write_matches(text: str) -> None:
    assert re.fullmatch(PATCH, text)
    assert fault(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*** Begin Patch\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n@@\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\nno mark in front\n*** End Patch",
        "*** Begin Patch\n*** Add File: a\nno mark in front\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n-x\n",
        "*** Begin Patch\n*** Update File:\n-x\n*** End Patch",
        "--- a\n+++ b\n@@ -1 +1 @@\n-x\n+y\n",
        EXAMPLE + "\nThat is all.",
    ],
)
def test_what_is_broken_does_not_match(text: str) -> None:
    assert re.fullmatch(PATCH, text) is None


# Read alike, and nothing that anybody needs to write: blanks around markers, other line ends, a here-document, an environment.
SLOPPY = re.compile(
    r"\r|<<|^\s+\*\*\*|^\*\*\*.*[ \t]$|^\*\*\* Environment|^@@ $|End of File\n\n|\A\n|\n\n\Z", re.MULTILINE
)


def test_every_tidy_patch_can_be_written_and_none_that_is_refused_for_its_form() -> None:
    tidy = 0
    for seed in range(2000):
        text = case(seed).patch
        if fault(text) is Fault.SYNTAX:
            assert re.fullmatch(PATCH, text) is None
        elif fault(text) is None and not parse(text).notes and SLOPPY.search(text) is None:
            tidy += 1
            assert re.fullmatch(PATCH, text), text
    assert tidy > 300
