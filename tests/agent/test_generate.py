"""Plain completion over each kind of source."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import RunConfig
from agent.errors import EndpointRefused, EndpointUnreachable, UsageError
from agent.generate import generate
from tests.servers import Reply, Reset, Server, document, event, head, line, serving

ROOT = Path(__file__).resolve().parents[2]


def piece(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


WHOLE: Reply = [
    head(),
    piece(" upon"),
    piece(" a time", "length"),
    event({"choices": [], "usage": {}}),
    event("[DONE]"),
]


def at(server: Server, **keys: object) -> RunConfig:
    base: dict[str, object] = {"endpoint": server.url, "model": "m", "context_tokens": 4096, "endpoint_timeout_s": 5.0}
    return RunConfig(**{**base, **keys})  # type: ignore[arg-type]


def test_the_text_goes_out_as_it_is_and_its_continuation_streams() -> None:
    said: list[str] = []
    with serving([WHOLE]) as server:
        config = at(server, max_answer_tokens=20, temperature=0.5, seed=3)
        assert list(generate(config, "Once <|end|>\n", said.append)) == [" upon", " a time"]
    assert server.requests[0].path == "/v1/completions"
    assert server.posts() == [
        {
            "model": "m",
            "prompt": "Once <|end|>\n",
            "stream": True,
            "max_tokens": 20,
            "temperature": 0.5,
            "top_p": 1.0,
            "seed": 3,
        }
    ]


def test_ollama_is_given_the_text_through_its_own_interface(tmp_path: Path) -> None:
    pieces = [line({"response": " upon"}), line({"response": " a time"})]
    end = line({"response": "", "done": True, "done_reason": "length", "prompt_eval_count": 2, "eval_count": 2})
    with serving([document({}, 503), [head(kind="application/x-ndjson"), *pieces, end]]) as server:
        config = at(server, wire="ollama", cache_dir=tmp_path)
        assert "".join(generate(config, "Once", lambda _: None)) == " upon a time"
    body = server.posts()[-1]
    assert (body["prompt"], body["raw"], body["options"]["num_ctx"]) == ("Once", True, 4096)


def test_a_fault_before_the_first_piece_is_cured_by_asking_again() -> None:
    said: list[str] = []
    with serving([document({}, 503), WHOLE]) as server:
        assert "".join(generate(at(server), "Once", said.append)) == " upon a time"
    assert len(said) == 1
    assert said[0].startswith("retrying: ")


@pytest.mark.parametrize("end", [[Reset()], []], ids=["reset", "no finish reason"])
def test_what_breaks_off_later_is_an_error_and_not_said_twice(end: list[Reset]) -> None:
    with serving([[head(), piece(" upon"), *end], WHOLE]) as server:
        pieces = generate(at(server), "Once", lambda _: None)
        assert next(pieces) == " upon"
        with pytest.raises(EndpointUnreachable, match="broke off"):
            next(pieces)


def test_a_refusal() -> None:
    with (
        serving([document({"error": {"message": "no such model"}}, 404)]) as server,
        pytest.raises(EndpointRefused, match="no such"),
    ):
        list(generate(at(server), "Once", lambda _: None))


def test_wires_that_have_only_messages() -> None:
    for wire in ("chat", "responses"):
        with pytest.raises(UsageError, match="cannot continue plain text"):
            generate(RunConfig(wire=wire), "Once", lambda _: None)
    with pytest.raises(UsageError, match="needs a checkpoint"):
        list(generate(RunConfig(wire="local"), "Once", lambda _: None))


def agent(*arguments: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "agent", "generate", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=60, check=False)


def test_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Once\n")
    with serving([WHOLE]) as server:
        arguments = ("--endpoint", server.url, "--model", "m", "--context", "4096", "--wire", "completions")
        for file, stdin in ((str(tmp_path / "text"), b""), ("-", b"Once\n")):
            ran = agent(file, *arguments, stdin=stdin)
            assert (ran.returncode, ran.stdout) == (0, b" upon a time"), ran.stderr
    assert [body["prompt"] for body in server.posts()] == ["Once\n", "Once\n"]
    assert agent(str(tmp_path / "none"), *arguments).returncode == 2
    assert agent("-", *arguments, stdin=b"\xff").returncode == 2


def test_a_script_is_played(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"turns": [[{"channel": "analysis", "text": "hm"}, {"text": "and so on"}]]}')
    ran = agent("-", "--wire", "scripted", "--script", str(tmp_path / "s.json"), stdin=b"x")
    assert (ran.returncode, ran.stdout) == (0, b"and so on")
