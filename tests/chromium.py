"""A headless Chromium that is spoken to in its own protocol over a pipe: opens pages, presses keys, takes pictures.

Nothing is installed for it but Debian's `chromium` (scripts/chromium sees to it); nothing listens on a port.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 60.0


def program() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, "Chromium is not installed: run scripts/chromium (Debian and Ubuntu: apt-get install chromium)"
    return found


class Page:
    """One tab. ``complaints`` are the console's messages and what the browser refused, since the page was opened."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> Any:
        return self._browser.call(method, self._session, self._heard, **parameters)

    def _heard(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(told["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(told["exceptionDetails"]["text"])
            case _:
                pass

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Open a page and wait until it is there; return the seconds that the browser took to load it."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints.clear()
        self.call("Page.navigate", url=url)
        give_up_s = time.monotonic() + TIMEOUT_S
        while not self.ask("document.readyState === 'complete' && location.href !== 'about:blank'"):
            assert time.monotonic() < give_up_s, f"{url} did not load"
            time.sleep(0.01)
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return float(self.ask("performance.getEntriesByType('navigation')[0].loadEventEnd")) / 1000

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: str | None = None, text: str | None = None) -> None:
        """Press one key, as a person would."""
        keys = {"key": key, "code": code or key, "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}.get(key, 0)}
        shown = {"text": text or "\r"} if key == "Enter" or text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **shown)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def photograph(self, path: Path, *, whole: bool = True) -> bytes:
        """Take a picture of the page, of all of it or of what a person sees first."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture := base64.b64decode(shot["data"]))
        return picture


class Browser:
    """The process and its pipe: one JSON message after the other, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # to it, from it
        command = [program(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}', "bash", *command],
            pass_fds=(ours[0], theirs[1]), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self._write, self._read = ours[1], theirs[0]
        self._number, self._rest = 0, b""

    def page(self) -> Page:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        return Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def call(self, method: str, session: str | None = None, heard: Any = None, **parameters: object) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if heard is not None and answer.get("sessionId") == session:
                heard(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], TIMEOUT_S)
            data = os.read(self._read, 1 << 16) if ready else b""
            assert data, f"Chromium does not answer (exit code {self._process.poll()})"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def close(self) -> None:
        os.close(self._write)  # it ends when nobody speaks to it any more
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
