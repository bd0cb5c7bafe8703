"""A thread that owns an engine, so that several conversations can stream from it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import count
from queue import SimpleQueue

import torch

from runtime.engine import Engine
from runtime.errors import EngineStopped, RequestRefused, RuntimeFault
from runtime.request import Request, TokenOut


class Worker:
    """Owns the engine's thread. ``stream`` may be called from any number of threads.

    An error in a step ends every stream with an EngineStopped that names it; so does ``close``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: SimpleQueue[Request | str | None] = SimpleQueue()  # a request, an id to abort, None to stop
        # The engine gets a unique name for each stream: when an id is used again, the new stream must not receive
        # tokens that a running step still has for the old one.
        self._names = count()
        self._streams: dict[str, SimpleQueue[TokenOut | RuntimeFault]] = {}
        self._open: dict[str, str] = {}  # id of an open stream -> its unique name
        self._lock = threading.Lock()
        self._stopped: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def stopped(self) -> str | None:
        """Why no request is answered any more; None while the engine runs."""
        return self._stopped

    def stream(self, request: Request, unwanted: Callable[[], bool] = lambda: False) -> Generator[TokenOut]:
        """Yield the request's tokens as they are sampled; closing the iterator cancels the request.

        ``unwanted`` is called once, as soon as ``cancel`` can find the request: True if it was cancelled before that.

        Raises RequestRefused for a request that cannot be served, EngineStopped if the engine stops before the request ends.
        """
        outs: SimpleQueue[TokenOut | RuntimeFault] = SimpleQueue()
        with self._lock:
            if self._stopped is not None:
                raise EngineStopped(self._stopped)
            if request.id in self._open:
                raise RequestRefused(f"a request with the id {request.id!r} is already running")
            name = str(next(self._names))
            self._open[request.id] = name
            self._streams[name] = outs
        self._inbox.put(replace(request, id=name))
        if unwanted():
            self.cancel(request.id)
        finish: str | None = None
        try:
            while finish is None:
                out = outs.get()
                if isinstance(out, RuntimeFault):
                    finish = "refused"
                    raise out
                finish = out.finish
                yield replace(out, id=request.id)
        finally:
            with self._lock:
                self._open.pop(request.id, None)
                self._streams.pop(name, None)
            if finish is None or finish == "cancelled":
                self._inbox.put(name)

    def cancel(self, request_id: str) -> None:
        """End a stream from another thread, at once: it does not wait for a running step. Unknown ids are ignored."""
        with self._lock:
            name = self._open.get(request_id)
            outs = self._streams.get(name) if name is not None else None
        if outs is not None:
            outs.put(TokenOut(request_id, None, "cancelled"))

    def close(self) -> None:
        """Stop the thread after the running step. May be called twice."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        reason = "the engine stopped because of an internal error: see the traceback on standard error"
        try:
            while self._receive():
                for out in self._engine.step():
                    self._send(out.id, out)
            reason = "the engine was closed"
        except torch.OutOfMemoryError as error:
            reason = f"the engine stopped: the device ran out of memory in a step: give the cache less ({error})"
        except (RuntimeError, RuntimeFault) as error:  # a kernel failed (torch's RuntimeError), or a mask is invalid
            reason = f"the engine stopped: {error}"
        finally:
            with self._lock:
                self._stopped = reason
                for outs in self._streams.values():
                    outs.put(EngineStopped(reason))

    def _receive(self) -> bool:
        """Handle the messages in the inbox; wait for one if the engine is idle. Return False to stop."""
        while self._engine.idle or not self._inbox.empty():
            if self._inbox.empty() and self._engine.prepare():
                continue  # one more graph is recorded, which makes the next requests faster
            asked = self._inbox.get()
            match asked:
                case None:
                    return False
                case Request():
                    try:
                        self._engine.add(asked)
                    except RuntimeFault as refusal:
                        self._send(asked.id, refusal)
                case str():
                    self._engine.abort(asked)
        return True

    def _send(self, request_id: str, out: TokenOut | RuntimeFault) -> None:
        with self._lock:
            outs = self._streams.get(request_id)
        if outs is not None:
            outs.put(out)
