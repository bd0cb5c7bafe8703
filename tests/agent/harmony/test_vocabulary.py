"""The vocabulary comes from the package, checked, unpacked once, and never from a network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.errors import AgentError
from agent.harmony import tokens, vocabulary
from agent.harmony.vocabulary import FILE_BYTES, FILE_NAME, SHA256, load_encoding, unpack

NO_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a start asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from agent.harmony.vocabulary import load_encoding
import os
encoding = load_encoding(Path(sys.argv[1]))
assert encoding.encode("assistant") == [173781]
assert "TIKTOKEN_ENCODINGS_BASE" not in os.environ
"""


def test_unpacks_the_file_that_harmony_expects(tmp_path: Path) -> None:
    folder = unpack(tmp_path)
    data = (folder / FILE_NAME).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (FILE_BYTES, SHA256)
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_a_second_start_reads_what_is_there(tmp_path: Path) -> None:
    path = unpack(tmp_path) / FILE_NAME
    before = path.stat()
    unpack(tmp_path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", [b"", b"x", None], ids=["emptied", "cut", "one byte changed"])
def test_a_damaged_file_is_healed(tmp_path: Path, damage: bytes | None) -> None:
    path = unpack(tmp_path) / FILE_NAME
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data) if damage is None else damage)
    unpack(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256


def test_many_starts_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: unpack(tmp_path), range(8)))
    assert folders == {tmp_path / "vocabulary"}
    assert [path.name for path in (tmp_path / "vocabulary").iterdir()] == [FILE_NAME]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AgentError, match="cache_dir"):
        unpack(tmp_path / "file")


def test_a_package_with_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "SHA256", "0" * 64)
    with pytest.raises(AgentError, match="pinned version"):
        unpack(tmp_path)
    assert not (tmp_path / "vocabulary").exists()


def test_loading_needs_no_network_and_leaves_the_environment_alone(tmp_path: Path) -> None:
    """In a process of its own, because the library reads the environment inside Rust."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TIKTOKEN")}
    subprocess.run([sys.executable, "-c", NO_NETWORK, str(tmp_path)], check=True, env=environment)


def test_loading_keeps_a_variable_that_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", "/nowhere")
    load_encoding(tmp_path)
    assert os.environ["TIKTOKEN_ENCODINGS_BASE"] == "/nowhere"


def test_the_control_ids_are_the_librarys(encoding) -> None:
    spelt = {
        "<|endoftext|>": tokens.ENDOFTEXT,
        "<|return|>": tokens.RETURN,
        "<|constrain|>": tokens.CONSTRAIN,
        "<|channel|>": tokens.CHANNEL,
        "<|start|>": tokens.START,
        "<|end|>": tokens.END,
        "<|message|>": tokens.MESSAGE,
        "<|call|>": tokens.CALL,
    }
    for text, token in spelt.items():
        assert encoding.encode(text, allowed_special="all") == [token]
    assert encoding.encode("assistant") == [tokens.ASSISTANT]
    assert set(encoding.stop_tokens_for_assistant_actions()) == set(tokens.STOPS)
    every = [encoding.encode(text, allowed_special="all") for text in encoding.special_tokens_set]
    assert {token for ids in every for token in ids} == set(range(tokens.FIRST_CONTROL, tokens.VOCABULARY_SIZE + 1))
