"""The allocator's setting: added where it is not, never overwritten."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runtime.allocator import prepare_allocator

NEW, OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {NEW: "expandable_segments:True"}),
        ({NEW: ""}, {NEW: "expandable_segments:True"}),
        ({NEW: "max_split_size_mb:64"}, {NEW: "max_split_size_mb:64,expandable_segments:True"}),
        ({OLD: "max_split_size_mb:64"}, {OLD: "max_split_size_mb:64,expandable_segments:True"}),
        ({NEW: "expandable_segments:False"}, {NEW: "expandable_segments:False"}),
        (
            {NEW: "a:1", OLD: "expandable_segments:False,b:2"},
            {NEW: "a:1,expandable_segments:True", OLD: "expandable_segments:False,b:2"},
        ),
        ({"HOME": "/"}, {"HOME": "/", NEW: "expandable_segments:True"}),
    ],
)
def test_the_setting_is_merged(before: dict[str, str], after: dict[str, str]) -> None:
    environment = dict(before)
    prepare_allocator(environment)
    assert environment == after
    prepare_allocator(environment)
    assert environment == after, "asking twice changes nothing"


def test_torch_is_loaded_after_it_and_accepts_it() -> None:
    code = """
import os, sys
from runtime.allocator import prepare_allocator
import runtime.cli
assert "torch" not in sys.modules
os.environ["PYTORCH_ALLOC_CONF"] = "max_split_size_mb:64"
prepare_allocator()
import torch
torch.zeros(1)
print(os.environ["PYTORCH_ALLOC_CONF"])
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "max_split_size_mb:64,expandable_segments:True"
