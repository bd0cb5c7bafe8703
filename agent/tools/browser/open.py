"""Opens the configured browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from agent.config import RunConfig
from agent.errors import UsageError
from agent.tools.browser.browser import Browser
from agent.tools.browser.services import EXA_URL, YOU_URL, Api, Exa, Service, You


def open_browser(config: RunConfig) -> Browser:
    """Return a new browser with an empty history; ``browser`` auto chooses the first service with a key.

    Raises UsageError if there is no key, or lxml is not installed.
    """
    if find_spec("lxml") is None:  # loaded with the first page
        raise UsageError('The browser needs lxml, which is not installed: pip install "gpt-oss-agent[browser]"')
    return Browser(_service(config), _counter(config.cache_dir))


def _service(config: RunConfig) -> Service:
    keys = {"exa": config.exa_api_key, "youcom": config.youcom_api_key}
    wanted = keys if config.browser == "auto" else (config.browser,)
    chosen, key = next(((name, key) for name in wanted if (key := keys[name])), ("", None))
    if key is None:
        raise UsageError("The browser needs a search service: set EXA_API_KEY (exa.ai) or YDC_API_KEY (you.com).")
    if chosen == "exa":
        return Exa(Api("Exa", config.browser_url or EXA_URL, key))
    return You(Api("You.com", config.browser_url or YOU_URL, key))


def _counter(cache_dir: Path) -> Callable[[str], Sequence[int]]:
    """Return an encoder with our vocabulary, which is loaded (0.3 s) when the first page is shown."""
    encoders: list[Callable[[str], Sequence[int]]] = []

    def encode(text: str) -> Sequence[int]:
        if not encoders:
            from agent.harmony.codec import open_codec

            encoders.append(open_codec(cache_dir).encode)
        return encoders[0](text)

    return encode
