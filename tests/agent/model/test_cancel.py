"""Ending an answer from another thread, while the backend is silent; and Ctrl-C, which the main thread takes itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import Cancelled
from agent.harmony.codec import Codec
from agent.model.cancel import Cancel
from agent.model.client import Client, Endpoint
from agent.model.open import Vocabulary
from tests.agent.model.players import Player, players
from tests.agent.model.test_wires import LOOK, PARAMS, TASK, WIRES
from tests.servers import Pause, Server, Step, document, serving

AT_ONCE_S = 5.0  # 2 ms, where nothing else runs
SILENT_S = 60.0


@contextmanager
def once_asked(server: Server, do: Callable[[], None], requests: int = 1) -> Iterator[list[float]]:
    """Do something from another thread, a moment after the server has read so many requests; and note when."""
    done_s: list[float] = []

    def wait_and_do() -> None:
        wait_for(lambda: len(server.requests) == requests)
        time.sleep(0.1)
        done_s.append(time.monotonic())
        do()

    thread = threading.Thread(target=wait_and_do)
    thread.start()
    try:
        yield done_s
    finally:
        thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + SILENT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.005)


def client(url: str) -> Client:
    found = Client(Endpoint(url, "gpt-oss-20b", silence_timeout_s=SILENT_S, patience_s=SILENT_S, shared=True))
    found.openai()  # whose import takes longer than these tests wait
    return found


@pytest.fixture(params=WIRES)
def player(request: pytest.FixtureRequest, codec: Codec, cache_dir: Path) -> Player:
    return players(codec, Vocabulary(cache_dir))[request.param]


@pytest.mark.parametrize("place", ["before the head", "behind the head", "inside"])
def test_a_silent_endpoint_is_hung_up_on_at_once(player: Player, place: str) -> None:
    starts: dict[str, Sequence[Step]] = {"before the head": [], "behind the head": [player.head()]}
    reply = [*starts[place], Pause(SILENT_S)] if place in starts else player.half(LOOK, [Pause(SILENT_S)])
    cancel = Cancel()
    with serving([reply]) as server:
        model = player.build(client(server.url))
        with once_asked(server, cancel.call) as called_s, pytest.raises(Cancelled):
            list(model.sample(TASK, replace(PARAMS, cancel=cancel)))
        assert time.monotonic() - called_s[0] < AT_ONCE_S
        assert server.hung_up.wait(AT_ONCE_S)
        model.close()
        assert len(server.posts()) == 1


def test_a_wait_before_the_next_attempt_is_ended(player: Player) -> None:
    cancel = Cancel()
    with serving([document({"error": "busy"}, 429, Retry_After="50")]) as server:
        model = player.build(client(server.url))
        with once_asked(server, cancel.call) as called_s, pytest.raises(Cancelled):
            list(model.sample(TASK, replace(PARAMS, cancel=cancel)))
        assert time.monotonic() - called_s[0] < AT_ONCE_S
        model.close()


def test_what_was_cancelled_before_it_began_is_not_waited_for(player: Player) -> None:
    cancel = Cancel()
    cancel.call()
    with serving([[Pause(SILENT_S)]]) as server:
        model = player.build(client(server.url))
        began_s = time.monotonic()
        with pytest.raises(Cancelled):
            list(model.sample(TASK, replace(PARAMS, cancel=cancel)))
        assert time.monotonic() - began_s < AT_ONCE_S
        model.close()


def test_an_answer_that_is_not_cancelled_is_not_touched(player: Player) -> None:
    cancel = Cancel()
    with serving([player.reply(LOOK)]) as server:
        model = player.build(client(server.url))
        assert list(model.sample(TASK, replace(PARAMS, cancel=cancel)))
        cancel.call()  # too late to any effect
        model.close()


def test_one_that_is_cancelled_does_not_touch_the_others(player: Player) -> None:
    """Both are under way; the other goes on once this one was cancelled."""
    cancel, half = Cancel(), 1 + len(player.say(LOOK)) // 2
    first = player.half(LOOK, [Pause(0.5), *player.reply(LOOK)[half:]])
    with serving([first, player.half(LOOK, [Pause(SILENT_S)])]) as server:
        model = player.build(client(server.url))
        seen: list[object] = []
        other = threading.Thread(target=lambda: seen.extend(model.sample(TASK, PARAMS)))
        other.start()
        wait_for(lambda: len(server.requests) == 1)
        with once_asked(server, cancel.call, 2), pytest.raises(Cancelled):
            list(model.sample(TASK, replace(PARAMS, cancel=cancel)))
        other.join()
        assert type(seen[-1]).__name__ == "Sampled"
        model.close()


def test_ctrl_c_ends_the_wait_for_a_silent_endpoint(player: Player) -> None:
    main = threading.main_thread().ident
    assert main is not None
    assert threading.current_thread() is threading.main_thread()
    with serving([[Pause(SILENT_S)]]) as server:
        model = player.build(client(server.url))
        with once_asked(server, lambda: signal.pthread_kill(main, signal.SIGINT)) as sent_s:
            with pytest.raises(KeyboardInterrupt):
                list(model.sample(TASK, PARAMS))
            assert time.monotonic() - sent_s[0] < AT_ONCE_S
        assert server.hung_up.wait(AT_ONCE_S)
        model.close()


def test_every_way_is_told_once_and_only_while_it_waits() -> None:
    cancel, told = Cancel(), list[str]()
    with cancel.by(lambda: told.append("over")):
        pass
    with cancel.by(lambda: told.append("one")), cancel.by(lambda: told.append("two")):
        assert not cancel.called
        cancel.call()
        assert told == ["one", "two"]
    with cancel.by(lambda: told.append("late")):
        assert told == ["one", "two", "late"]
    with pytest.raises(Cancelled):
        cancel.sleep(10)
