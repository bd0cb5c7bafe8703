"""Work in a daemon thread, which an exiting process does not wait for: a dead endpoint or engine must not delay its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> Future[T]:
    """Start work in a daemon thread. The future holds its result, or what it raised."""
    future: Future[T] = Future()

    def do() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by future.result()
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=do, name="background", daemon=True).start()
    return future
