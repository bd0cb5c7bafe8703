"""Resolves a call: which tool it is for, however the model or its server spelt the name, and its body in canonical form.

A call is dispatched only if its meaning is clear: an ambiguous name needs arguments that fit only one tool, and for an unknown
name the answer lists the names that exist.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.harmony.spelt import together
from agent.tools.base import Tool
from agent.tools.bodies import PATCH_BEGIN, Body, not_python, patch_in_command, read
from agent.tools.open import TRAINED_NAMES


@dataclass(frozen=True, slots=True)
class Resolved:
    """A call of one of our tools. ``text`` is the canonical body for the tool's ``run``.

    ``repairs`` says what was repaired: name, json (it was broken), body (it was not JSON), arguments (other names or forms),
    patch-command (a patch inside a shell command).
    """

    tool: str
    text: str
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unknown:
    """A call of an unknown tool. ``answer`` tells the model which tools exist."""

    recipient: str
    answer: str


# Namespaces that do not identify the tool. ``browser`` is not among them: it means the web, and its members include it in their names.
_NAMESPACES = {
    "functions", "function", "tools", "tool", "container", "repobrowser", "repo", "assistant", "defaultapi", "developer",
    "commentary", "namespace", "multitooluse",
}  # fmt: skip
# Names (letters and digits only) that mean one tool, whatever the arguments are.
_CLEAR: Mapping[str, str] = {
    spelling: tool
    for tool, spellings in {
        "shell": "shell exec bash sh zsh terminal cmd command localshell execcommand shellcommand runshellcommand runcommand "
        "executecommand executebash containerexec runterminalcmd runterminalcommand runbash bashtool shelltool execshell runshell",
        "python": "python py python3 ipython jupyter pythontool pythonexec runpython executepython pythoninterpreter codeinterpreter",
        "apply_patch": "applypatch",
        "plan": "plan updateplan setplan makeplan todowrite writetodos",
        "open_file": "openfile readfile viewfile catfile showfile",
        "search": "search grep searchcode codesearch searchfiles searchfile ripgrep rg grepsearch findinfiles searchrepo searchtext",
        "print_tree": "printtree tree showtree filetree",
        "browser_search": "browsersearch websearch searchweb internetsearch",
        "browser_open": "browseropen webopen openurl openpage webfetch fetchurl",
        "browser_find": "browserfind webfind findinpage",
        "list_dir": "listdir listfiles listdirectory ls listfolder listdirs",
    }.items()
    for spelling in spellings.split()
}
# Names that mean a tool only if the arguments are that tool's.
_BY_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "run": ("shell", "python"),
    "execute": ("shell", "python"),
    "open": ("open_file",),
    "read": ("open_file",),
    "view": ("open_file",),
    "cat": ("open_file",),
    "find": ("list_dir",),
    "list": ("list_dir",),
    "dir": ("list_dir",),
    "patch": ("apply_patch",),
    "edit": ("apply_patch",),
    "editfile": ("apply_patch",),
    "applydiff": ("apply_patch",),
    "code": ("python",),
}
# Tools of other agents that change files.
_CHANGES = re.compile("write|create|save|edit|insert|replace|strreplace|delete|remove|modify|update")
# Words that models and servers append to a name: content types and channels.
_TRAILING = {
    "json",
    "code",
    "text",
    "plain",
    "python",
    "commentary",
    "analysis",
    "final",
    "constrain",
    "message",
    "call",
}


def resolve(recipient: str, text: str, tools: Mapping[str, Tool], style: str = "trained") -> Resolved | Unknown:
    """Return the call in canonical form, or the answer to an unknown one. Pure; never raises.

    ``tools`` are the available tools by our names; ``style`` is the style in which they were declared.
    """
    name, text = _bare(recipient), together(text)
    if name in _CLEAR:
        candidates: tuple[str, ...] = (_CLEAR[name],)
    elif not name or name in _NAMESPACES:
        candidates = _fitting(text, tools)
    else:
        candidates = _BY_ARGUMENTS.get(name, ())
    for tool in candidates:
        body = read(tool, text)
        if name not in _CLEAR and not body.fits:
            continue
        if tool == "shell" and (patch := patch_in_command(body.text)) is not None:
            tool, body = "apply_patch", Body(patch, (*body.repairs, "patch-command"))
        elif tool == "python" and (meant := not_python(body.text)) is not None:
            tool, body = meant
        if tool in tools:
            known = {
                tool,
                TRAINED_NAMES.get(tool, tool),
                f"functions.{tool}",
                f"functions.{TRAINED_NAMES.get(tool, tool)}",
            }
            return Resolved(tool, body.text, body.repairs if recipient in known else ("name", *body.repairs))
        if tool.startswith("browser_"):
            break
        return Unknown(recipient, f"The tool {_shown(tool, style)} is not on offer in this run. {_offer(tools, style)}")
    return Unknown(recipient, _unknown(recipient, name, text, tools, style))


def _fitting(text: str, tools: Mapping[str, Tool]) -> tuple[str, ...]:
    """Return the only tool that the arguments fit, for a call whose name was lost (servers leave pieces of the header there)."""
    found = tuple(tool for tool in tools if text.lstrip().startswith("{") and read(tool, text).fits)
    return found if len(found) == 1 else ()


def _bare(recipient: str) -> str:
    """Return the name without garbage, namespaces, case and separators; "" if nothing clear is left."""
    words = recipient.split("<|")[0].strip().strip("`'\"").split()
    if words and words[0] in {"assistant", "to", "tool"}:
        words = words[1:]
    if not words or any(word.strip("`'\"").casefold() not in _TRAILING for word in words[1:]):
        return ""
    name = words[0].casefold().removeprefix("to=").removesuffix("()")
    parts = [re.sub(r"[^a-z0-9]", "", part) for part in re.split(r"[./:]|__", name) if part]
    while len(parts) > 1 and parts[0] in _NAMESPACES:
        parts = parts[1:]
    if len(parts) == 2 and parts[0] in {"browser", "web"}:
        parts = ["browser" + parts[1]]
    if len(parts) == 2 and (
        parts[0] == parts[1] or parts in (["python", "exec"], ["python", "run"], ["shell", "exec"])
    ):
        parts = parts[:1]
    return _without_namespace(parts[0]) if len(parts) == 1 else ""


def _without_namespace(name: str) -> str:
    """Remove a namespace from a name like ``repo_browser_search``, which is how servers without dots spell a dotted name."""
    rests = (name.removeprefix(namespace) for namespace in ("functions", "repobrowser", "container"))
    return next((rest for rest in rests if rest != name and rest in _CLEAR), name)


def _shown(tool: str, style: str) -> str:
    return TRAINED_NAMES.get(tool, tool) if style == "trained" else tool


def _offer(tools: Mapping[str, Tool], style: str) -> str:
    return f"These are: {', '.join(_shown(tool, style) for tool in tools)}." if tools else "There are none."


def _unknown(recipient: str, name: str, text: str, tools: Mapping[str, Tool], style: str) -> str:
    shown = recipient if len(recipient) <= 80 else f"{recipient[:80]}…"
    answer = f"There is no tool {shown!r}. {_offer(tools, style)}"
    if _CLEAR.get(name, "").startswith("browser_") and "browser_search" not in tools:
        return f"{answer} There is no web here; the repository's files are opened and searched with the tools above."
    if PATCH_BEGIN in text and "apply_patch" in tools:
        return f"{answer} A patch goes to {_shown('apply_patch', style)}."
    if _CHANGES.match(name) and "apply_patch" in tools:
        return f"{answer} Files are made, changed and deleted with {_shown('apply_patch', style)}."
    near = difflib.get_close_matches(
        name, [spelling for spelling, tool in _CLEAR.items() if tool in tools], n=1, cutoff=0.75
    )
    if near:
        return f"{answer} Did you mean {_shown(_CLEAR[near[0]], style)}?"
    return f"{answer} Any program runs with {_shown('shell', style)}." if "shell" in tools else answer
