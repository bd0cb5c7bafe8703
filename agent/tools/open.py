"""Opens the tools of a run, and declares them to the model with the names it was trained on or with ours."""

from __future__ import annotations

from collections.abc import Mapping

from agent.config import RunConfig
from agent.conversation import ToolSpec
from agent.tools.apply_patch import ApplyPatch
from agent.tools.base import Tool
from agent.tools.browse import ListDir, OpenFile, PrintTree, Search
from agent.tools.plan import Plan
from agent.tools.python import TRAINED_TIMEOUT_S, Python
from agent.tools.shell import Shell

# Our name → the name that gpt-oss knows from its training or, for `plan`, a name with a namespace: tools with a namespace are
# declared in the system message, where the model follows declarations best.
TRAINED_NAMES: Mapping[str, str] = {
    "plan": "functions.plan",
    "shell": "container.exec",
    "python": "python",
    "print_tree": "repo_browser.print_tree",
    "search": "repo_browser.search",
    "open_file": "repo_browser.open_file",
    "list_dir": "repo_browser.list_dir",
    "apply_patch": "repo_browser.apply_patch",
    "browser_search": "browser.search",
    "browser_open": "browser.open",
    "browser_find": "browser.find",
}


def open_tools(config: RunConfig) -> dict[str, Tool]:
    """Return the tools of a run by our names, in the order in which they are declared.

    Raises UsageError if the browser is requested but the key of a search service, or lxml, is missing.
    """
    most = config.max_output_bytes
    python = Python(
        min(config.command_timeout_s, TRAINED_TIMEOUT_S),
        most,
        stateful=config.python == "stateful",
        has_data_folder=config.sandbox == "docker",
    )
    tools: tuple[Tool, ...] = (
        Plan(),
        Shell(config.command_timeout_s, most),
        python,
        PrintTree(most),
        ListDir(most),
        Search(most),
        OpenFile(most),
        ApplyPatch(most),
        *_browser(config),
    )
    return {tool.name: tool for tool in tools}


def _browser(config: RunConfig) -> tuple[Tool, ...]:
    if config.browser == "off":
        return ()
    from agent.tools.browser.browser import browser_tools  # these load an HTTP client
    from agent.tools.browser.open import open_browser

    return browser_tools(open_browser(config))


def declare(tools: Mapping[str, Tool], style: str) -> tuple[ToolSpec, ...]:
    """Return the declarations. ``style`` is trained (names and arguments that the model knows) or generic (ours).

    In the trained style, python takes its body as plain text (``parameters`` None), like the built-in tool, and has the
    trained description (an empty one here) if that is accurate.
    """
    match style:
        case "generic":
            return tuple(tool.spec for tool in tools.values())
        case "trained":
            return tuple(_trained(tool) for tool in tools.values())
        case _:
            raise ValueError(f"style must be 'trained' or 'generic', not {style!r}")


def _trained(tool: Tool) -> ToolSpec:
    spec = tool.spec
    if isinstance(tool, Python):
        return ToolSpec(spec.name, "" if tool.is_as_trained else spec.description)
    return ToolSpec(TRAINED_NAMES.get(spec.name, spec.name), spec.description, spec.parameters)
