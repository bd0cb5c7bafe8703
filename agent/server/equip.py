"""Opens the built-in tools that the operator enabled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from agent.config import RunConfig
from agent.errors import UsageError
from agent.server.bench import Builtins
from agent.server.interpreters import Interpreters
from agent.session import new_run_id, sandbox_options
from agent.tools.browser.open import open_browser
from sandbox import plumbing, scratch
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.open import open_sandbox

GRACE_S = 5.0  # a container outlives a killed server only this long, because nothing resumes it


@contextmanager
def equipped(
    config: RunConfig, web: str | None, most_interpreters: int, say: Callable[[str], None]
) -> Iterator[Builtins]:
    """Yield the tools: a web search through the service ``web``, and code in at most that many sandboxes (0: none).

    Starts the first sandbox. Raises UsageError, and what starting a sandbox raises.
    """
    with scratch.folder("serve") as folder:
        browser = None
        if web is not None:
            wanted = replace(config, browser=web)
            open_browser(wanted)  # so that a missing key or package is reported now
            browser = lambda: open_browser(wanted)  # noqa: E731
        interpreters = None
        if most_interpreters:
            interpreters = Interpreters(_starter(config, folder, say), most_interpreters)
            interpreters.open()
        builtins = Builtins(browser, interpreters, config.memory_bytes)
        try:
            yield builtins
        finally:
            builtins.close()


def _starter(config: RunConfig, folder: Path, say: Callable[[str], None]) -> Callable[[], Sandbox]:
    """Return a function that starts a container with an empty workspace; it never has a network, whatever the configuration says."""
    if config.sandbox != "docker":
        raise UsageError(
            "--code-interpreter runs code for any client of the server, and therefore only in containers: sandbox = "
            f'"{config.sandbox}" is for your own runs. Set sandbox = "docker", or leave the flag out.'
        )
    config = replace(config, network="none")
    source = folder / "empty"
    source.mkdir()
    plumbing.run(["init", "-q"], source)
    snapshot = snapshots.take(source, folder / "state", config.include_uncommitted)

    def start() -> Sandbox:
        options = sandbox_options(config, new_run_id(), say)
        return open_sandbox(replace(options, limits=replace(options.limits, grace_s=GRACE_S)), snapshot)

    return start
