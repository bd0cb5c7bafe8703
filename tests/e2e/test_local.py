"""The whole of `agent fix` over the engine in its own process: a tiny checkpoint that speaks harmony's ids, on the CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.conftest import PLAIN, Place, git

# harmony: assistant → <|channel|> → final → <|message|> → done → <|return|>
ANSWER = (173781, 200005, 17196, 200008, 4167, 200002)
SMALL = ("--context", "8192", "--max-answer-tokens", "60")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: what it says is noise, and hardly ever ends by itself."""
    from runtime.model.tiny import HARMONY_VOCABULARY, tiny_config, write_tiny

    folder = tmp_path_factory.mktemp("noise")
    write_tiny(folder, config=tiny_config(HARMONY_VOCABULARY, layers=2))
    return folder


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but each token of ANSWER is followed by the next: a model with one thing to say."""
    from runtime.model.checkpoint import save_weights
    from runtime.model.tiny import HARMONY_VOCABULARY, tiny_config, tiny_weights
    from runtime.model.weights import Layout

    folder = tmp_path_factory.mktemp("answering")
    config = tiny_config(HARMONY_VOCABULARY, layers=2)
    weights = tiny_weights(config)
    for place, (token, following) in enumerate(pairwise(ANSWER)):
        weights.embedding[token] = 0
        weights.embedding[token, place] = 1000  # drowns what the layers add
        weights.unembedding[:, place] = 0
        weights.unembedding[following, place] = 50
    save_weights(weights, config, folder, Layout.HUGGING_FACE)
    return folder


def result(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_an_answer_that_ends_by_itself_is_a_run_that_changed_nothing(place: Place, answering: Path) -> None:
    before = git(place.repository, "status", "--porcelain")
    done = place.agent("fix", "fix it", "--model", str(answering), *PLAIN, *SMALL, "--json", "--temperature", "0")
    assert done.returncode == 6, done.stderr
    assert "100 % of" in done.stderr, "loading shows its progress"
    events = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    said = [event for event in events if event["event"] == "MessageAdded" and event["message"]["role"] == "assistant"]
    assert said
    assert {(each["message"]["channel"], each["message"]["text"]) for each in said} == {("final", " done")}
    sampled = [event for event in events if event["event"] == "Sampled"]
    assert {each["completion_tokens"] for each in sampled} == {len(ANSWER) - 1}
    assert git(place.repository, "status", "--porcelain") == before


@pytest.mark.docker
def test_the_same_with_a_container(place: Place, answering: Path) -> None:
    done = place.agent(
        "fix", "fix it", "--model", str(answering), "--image", "host", *SMALL, "--json", "--temperature", "0"
    )
    assert done.returncode == 6, done.stderr
    assert result(done)["outcome"] == "no_change"


def test_noise_ends_at_the_limit_of_tokens(place: Place, noise: Path) -> None:
    done = place.agent("fix", "fix it", "--model", str(noise), *PLAIN, *SMALL, "--max-tokens", "100", "--seed", "3")
    assert done.returncode in {4, 6}, done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = place.runs.iterdir()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    sampled = sum(event["completion_tokens"] for event in events if event["event"] == "Sampled")
    assert 60 <= sampled <= 160


def test_the_clock_ends_an_answer_under_way(place: Place, noise: Path) -> None:
    """Noise that never gets to a word: nobody sees anything of it, and it would go on for 32,768 tokens."""
    done = place.agent(
        "fix", "fix it", "--model", str(noise), *PLAIN, "--timeout", "8", "--context", "60000", timeout_s=90
    )
    assert done.returncode == 4, done.stderr


def test_an_interrupt_ends_an_answer_under_way(place: Place, noise: Path) -> None:
    running = place.start("fix", "fix it", "--model", str(noise), *PLAIN, "--context", "60000")
    assert running.stderr is not None
    for line in running.stderr:
        if "100 %" in line:
            break
    time.sleep(3)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=40)
    assert running.returncode == 130, said
    assert "Traceback" not in said


def test_a_checkpoint_of_another_vocabulary_is_refused_in_a_line(place: Place, tmp_path: Path) -> None:
    from runtime.model.tiny import write_tiny

    write_tiny(tmp_path / "model")
    done = place.agent("fix", "fix it", "--model", str(tmp_path / "model"), *PLAIN)
    assert done.returncode == 3
    assert "vocabulary ends at 255: it was made for another model" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_checkpoint_is_refused_in_a_line(place: Place, tmp_path: Path) -> None:
    done = place.agent("fix", "fix it", "--model", str(tmp_path), *PLAIN)
    assert done.returncode == 3
    assert "no *.safetensors" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
