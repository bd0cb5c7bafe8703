"""Converts the body of a call to canonical form, whatever form the model gave it.

The canonical form is the source for python, the patch text for apply_patch, and for all others a JSON object with our argument
names. A body that cannot be read with certainty is left unchanged, so that the tool answers with what is wrong.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.broken_json import meant

PATCH_BEGIN, PATCH_END = "*** Begin Patch", "*** End Patch"

# canonical argument: its other spellings
_ALIASES: Mapping[str, Mapping[str, str]] = {
    "shell": {
        "command": "cmd commands command_line commandline cmdline script bash shell argv args input",
        "workdir": "cwd working_directory working_dir workingdirectory directory dir",
        "timeout": "timeout_ms timeout_s timeout_sec timeout_seconds timeoutms",
    },
    "python": {"code": "source script python input cmd command content text program"},
    "apply_patch": {"patch": "input diff text content patch_text patchtext body command cmd arguments"},
    "plan": {"steps": "plan items todos tasks todo", "current": "current_step in_progress step"},
    "open_file": {
        "path": "file_path filepath file filename file_name absolute_path target_file relative_path name",
        "line_start": "start_line start line_from from begin first_line startline line offset",
        "line_end": "end_line end line_to to last_line endline stop",
        "line_numbers": "show_line_numbers numbers with_line_numbers",
    },
    "search": {
        "query": "pattern regex q search text search_term term keyword search_query needle",
        "path": "dir directory folder root file_path filepath file",
        "max_results": "limit max count num_results max_matches head_limit top_k",
    },
    "print_tree": {"path": "dir directory folder root dir_path file_path", "depth": "max_depth level levels maxdepth"},
    "list_dir": {"path": "dir directory folder root dir_path file_path", "depth": "max_depth level levels maxdepth"},
    "browser_search": {
        "query": "q text search_query search_term keywords",
        "topn": "top_n num_results count limit max_results",
    },
    "browser_open": {
        "id": "url link link_id href address",
        "cursor": "page",
        "loc": "location line line_start start start_line",
        "num_lines": "lines n_lines line_count limit",
        "view_source": "viewsource",
    },
    "browser_find": {"pattern": "query text q search needle", "cursor": "page"},
}
# Names from the models' training: they are accepted like ours, and do not count as a repair.
_ALSO_TRAINED: Mapping[str, tuple[str, ...]] = {"shell": ("cmd",), "plan": ("plan",), "apply_patch": ("input",)}
_REQUIRED: Mapping[str, str] = {
    "shell": "command", "python": "code", "apply_patch": "patch", "plan": "steps", "open_file": "path", "search": "query",
    "print_tree": "path", "list_dir": "path", "browser_search": "query", "browser_open": "id", "browser_find": "pattern",
}  # fmt: skip
_WRAPPERS = ("arguments", "parameters", "args", "params", "input", "kwargs", "tool_input")
_NUMBERS = {
    "line_start",
    "line_end",
    "max_results",
    "depth",
    "current",
    "timeout",
    "topn",
    "cursor",
    "loc",
    "num_lines",
}
_STATES: Mapping[str, str] = {
    **dict.fromkeys(("pending", "todo", "not_started", "open", "planned", "next"), "pending"),
    **dict.fromkeys(("in_progress", "inprogress", "active", "doing", "current", "started"), "in_progress"),
    **dict.fromkeys(("completed", "complete", "done", "finished"), "completed"),
}
_FENCE = re.compile(r"\s*```[\w+-]*\n(.*?)\n?```\s*", re.DOTALL)
_PATH_LINES = re.compile(r"(\S+?):(\d+)(?:-(\d+))?")
_CHECKBOX = re.compile(r"\s*(?:[-*]|\d+[.)])\s*(?:\[(.?)\]\s*)?(.+)")
_PATCH_COMMAND = re.compile(
    r"\s*(?:cd\s+(?P<folder>'[^'\n]*'|\"[^\"$`\n]*\"|[^\s'\"$`;&|]+)\s*&&\s*)?apply_?patch\s*"
    r"<<-?\s*(?P<quote>['\"]?)(?P<word>\w+)(?P=quote)[ \t]*\n(?P<patch>.*?)\n[ \t]*(?P=word)\s*",
    re.DOTALL,
)
_PATCH_PATH = re.compile(r"^(\*\*\* (?:Add File|Delete File|Update File|Move to): )(.+)$", re.MULTILINE)
_SHELLS = {"bash", "sh", "/bin/bash", "/bin/sh"}


@dataclass(frozen=True, slots=True)
class Body:
    """A canonical body, what was repaired in it, and whether it has the required arguments."""

    text: str
    repairs: tuple[str, ...] = ()
    fits: bool = False


def read(tool: str, text: str) -> Body:
    """Return a body in the tool's canonical form. Never raises; an unreadable body is returned unchanged."""
    try:
        return _read(tool, text)
    except RecursionError:  # nested a thousand levels deep, which only a looping model writes
        return Body(text)


def _read(tool: str, text: str) -> Body:
    repairs: list[str] = []
    plain = _unwrapped(text, repairs)
    found = _json(plain, repairs) if _may_be_json(tool, plain) else None
    if isinstance(found, dict):
        found = _inner(found, tool, repairs)
    if isinstance(found, str) and tool != "python":
        # A JSON string around the body itself.
        repairs.append("body")
        plain, found = found, None
    match tool:
        case "python":
            return _python(plain, found, text, repairs)
        case "apply_patch":
            return _patch(plain, found, repairs)
    given = _from_json(tool, found, repairs) if found is not None else _from_text(tool, plain, repairs)
    if given is None:
        return Body(text)
    given = _shaped(tool, given, repairs)
    fits = bool(given.get(_REQUIRED[tool])) and set(given) <= set(_ALIASES[tool])
    return Body(json.dumps(given, ensure_ascii=False), tuple(dict.fromkeys(repairs)), fits)


def patch_in_command(body: str) -> str | None:
    """Return the patch if a canonical shell body only applies a patch; None if it does anything else."""
    command = (
        json.loads(body).get("command") if body.startswith("{") and PATCH_BEGIN in body and _is_json(body) else None
    )
    match command:
        case ["apply_patch" | "applypatch", str(patch)] if patch.lstrip().startswith((PATCH_BEGIN, "<<")):
            return patch
        case [str(shell), str(flag), str(script)] if shell in _SHELLS and flag in {"-c", "-lc"}:
            return _patch_in_script(script)
        case str(script):
            return _patch_in_script(script)
    return None


def not_python(body: str) -> tuple[str, Body] | None:
    """Return the tool and body if a body for python is really a patch, or a command with its arguments; None if it may be Python."""
    if (patch := _patch_in_script(body)) is not None:
        return "apply_patch", Body(patch)
    if not body.lstrip().startswith("{"):
        return None
    edit, given = read("apply_patch", body), read("shell", body)
    if edit.text.lstrip().startswith(PATCH_BEGIN):
        return "apply_patch", edit
    return ("shell", given) if given.fits and isinstance(json.loads(given.text)["command"], list) else None


def _patch_in_script(script: str) -> str | None:
    if script.strip().startswith(PATCH_BEGIN) and script.strip().endswith(PATCH_END):
        return script
    match = _PATCH_COMMAND.fullmatch(script)
    if match is None:
        return None
    folder, patch = (match["folder"] or "").strip("'\""), _ended(match["patch"])
    if folder in {"", "."}:
        return patch
    return _PATCH_PATH.sub(lambda found: found[1] + posixpath.join(folder, found[2]), patch)


def _ended(patch: str) -> str:
    """Return the patch with its last line added if that is missing. The syntax around it was closed, so nothing else was cut off."""
    is_open = patch.lstrip().startswith(PATCH_BEGIN) and PATCH_END not in patch
    return f"{patch.rstrip()}\n{PATCH_END}" if is_open else patch


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unwrapped(text: str, repairs: list[str]) -> str:
    """Return the text without remains of control tokens at its ends and without a code fence around it."""
    plain = re.sub(r"^\s*(?:<\|[a-z]+\|>\s*)+(?:json|code)?\s*", "", text)
    plain = re.sub(r"(?:<\|(?:call|end|return|endoftext)\|>\s*)+$", "", plain)
    plain = re.sub(r"^\s*json\s*(?=[{\[])", "", plain)
    match = _FENCE.fullmatch(plain)
    if match is not None:
        plain = match[1]
    if plain != text:
        repairs.append("body")
    return plain


def _may_be_json(tool: str, plain: str) -> bool:
    """Whether the body looks like JSON. Python source may start with a bracket, so for python only an object counts."""
    start = plain.lstrip()[:1]
    return start == "{" if tool == "python" else start in {"{", "[", '"'}


def _json(plain: str, repairs: list[str]) -> object:
    """Return the JSON value that the text is or was meant to be; None if that is uncertain."""
    try:
        return json.loads(plain)
    except ValueError:
        repairs.append("json")
    return meant(plain)


def _inner(found: dict[str, Any], tool: str, repairs: list[str]) -> object:
    """Return the arguments inside ``{"name": …, "arguments": …}`` and similar wrappers."""
    for wrapper in _WRAPPERS:
        inner = found.get(wrapper)
        if isinstance(inner, str) and inner.lstrip().startswith("{") and _is_json(inner):
            inner = json.loads(inner)
        if isinstance(inner, dict) and set(found) - {wrapper} <= {
            "name",
            "tool",
            "recipient",
            "type",
            "id",
            "function",
        }:
            repairs.append("arguments")
            return _inner(inner, tool, repairs)
    return found


def _from_json(tool: str, found: object, repairs: list[str]) -> dict[str, Any] | None:
    """Return the arguments by our names; None if there are two different values for one argument."""
    if isinstance(found, list) and tool in {"shell", "plan"}:
        repairs.append("body")
        return {_REQUIRED[tool]: found}
    if not isinstance(found, dict):
        return None
    match found:
        case {"command": str(program), "args": [*words], **others} if tool == "shell":
            found = {**others, "command": [*program.split(), *words]}
            repairs.append("arguments")
    given: dict[str, Any] = {}
    for key, value in found.items():
        name = _canonical(tool, key)
        if name in given and given[name] != value:
            return None
        given[name] = _milliseconds(key, value)
        if name != key and key not in _ALSO_TRAINED.get(tool, ()):
            repairs.append("arguments")
    return {key: value for key, value in given.items() if value is not None}


def _canonical(tool: str, key: str) -> str:
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).casefold().replace("-", "_").strip()
    return next((name for name, others in _ALIASES[tool].items() if plain == name or plain in others.split()), key)


def _milliseconds(key: str, value: object) -> object:
    """Return a timeout in seconds, unless it is so large that the tool itself treats it as milliseconds."""
    if key.casefold() in {"timeout_ms", "timeoutms"} and isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1000 if abs(value) < 1_000_000 else value
    return value


def _from_text(tool: str, plain: str, repairs: list[str]) -> dict[str, Any] | None:
    """Return arguments from a body that is not JSON, depending on the tool."""
    line = plain.strip()
    if line[:1] in {"{", "["} and tool != "shell":
        return None
    one_line = "\n" not in line
    repairs.append("body")
    match tool:
        case "shell" if line and line[:1] not in {"{", "[", '"'}:
            return {"command": line}
        case "plan" if line:
            return {"steps": [_text_step(entry) for entry in line.split("\n") if entry.strip()]}
        case "open_file" if line and one_line:
            match = _PATH_LINES.fullmatch(line)
            if match is None:
                return {"path": line}
            return {"path": match[1], "line_start": int(match[2]), "line_end": int(match[3] or match[2])}
        case "search" | "browser_search" if line and one_line:
            return {"query": line}
        case "browser_open" if line and one_line:
            return {"id": line}
        case "browser_find" if line and one_line:
            return {"pattern": line}
        case "print_tree" | "list_dir" if one_line:
            return {"path": line}
    return None


def _text_step(entry: str) -> dict[str, str]:
    match = _CHECKBOX.fullmatch(entry)
    mark = (match[1] or " ") if match is not None else " "
    state = "completed" if mark in "xX✓" else "in_progress" if mark in ">~*" else "pending"
    return {"text": match[2] if match is not None else entry.strip(), "state": state}


def _shaped(tool: str, given: dict[str, Any], repairs: list[str]) -> dict[str, Any]:
    """Return the arguments with the types that the tool expects, if they can be converted in only one way."""
    shapes: Mapping[str, Callable[[Any], Any]] = {
        "command": _command,
        "steps": _steps,
        "line_numbers": _flag,
        "view_source": _flag,
    }
    result: dict[str, Any] = {}
    for name, value in given.items():
        shape = _number if name in _NUMBERS else shapes.get(name)
        result[name] = shape(value) if shape is not None else value
        if result[name] != value and not (name == "steps" and _is_trained_plan(value)):
            repairs.append("arguments")
    match result.get("path"):
        case [str(path)]:
            result["path"] = path
    if tool == "open_file" and isinstance(end := result.get("line_end"), int) and end < 0:
        del result["line_end"]  # -1 means the last line
    for key in ("line_range", "view_range", "range", "lines"):
        span = result.get(key)
        if (
            tool == "open_file"
            and isinstance(span, list)
            and len(span) == 2
            and all(isinstance(end, int) for end in span)
        ):
            del result[key]
            result.update(zip(("line_start", "line_end"), span if span[1] >= 0 else span[:1], strict=False))
            repairs.append("arguments")
    return result


def _number(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}(\.0*)?", value.strip()):
        return int(float(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: object) -> object:
    return {"true": True, "false": False}.get(value.casefold(), value) if isinstance(value, str) else value


def _command(value: object) -> object:
    """Return a command as a list of words or as one line."""
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if isinstance(value, str) and value.lstrip().startswith("[") and _is_json(value):
        # The list, given as text.
        words = json.loads(value)
        return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else value
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        return value
    if len(value) == 1 and (" " in value[0] or "\n" in value[0]):
        return value[0]
    if value[0].split()[:1] and value[0].split()[0] in _SHELLS and len(value[0].split()) == 2:
        return [*value[0].split(), *value[1:]]  # ["bash -lc", "…"]
    if len(value) == 2 and value[0] in _SHELLS and not value[1].startswith("-") and " " in value[1]:
        return [value[0], "-c", value[1]]
    if len(value) > 1 and all(" " in word.strip() for word in value):
        return " && ".join(value)  # several command lines
    if len(value) > 3 and value[0] in _SHELLS and value[1] in {"-c", "-lc"} and not re.search(r"[\s$]", value[2]):
        return [*value[:2], " ".join(word if word.split() == [word] else shlex.quote(word) for word in value[2:])]
    if value[0] == "cd" and "&&" in value:  # a command line that was split into words
        return " ".join(word if word in {"&&", "||", "|"} else shlex.quote(word) for word in value)
    return value


def _steps(value: object) -> object:
    if isinstance(value, str):
        return [_text_step(entry) for entry in value.split("\n") if entry.strip()]
    return [_step(entry) for entry in value] if isinstance(value, list) else value


def _is_trained_plan(value: object) -> bool:
    """Whether these are steps in the format of Codex's update_plan, which the models know too."""
    return isinstance(value, list) and all(
        isinstance(entry, dict) and set(entry) == {"step", "status"} and entry["status"] in set(_STATES.values())
        for entry in value
    )


def _step(entry: object) -> object:
    if not isinstance(entry, dict):
        return entry
    text = next(
        (entry[key] for key in ("text", "step", "content", "description", "title", "task", "name") if key in entry),
        None,
    )
    state = next((entry[key] for key in ("state", "status") if key in entry), "pending")
    if isinstance(state, str):
        state = _STATES.get(re.sub(r"[\s-]", "_", state.casefold()), state)
    return entry if text is None else {"text": text, "state": state}


def _python(plain: str, found: object, text: str, repairs: list[str]) -> Body:
    """Return the source: the body itself, or the one argument that contains it."""
    if isinstance(found, dict):
        given = _from_json("python", found, repairs)
        if given is not None and isinstance(given.get("code"), str) and set(given) <= {"code", "timeout"}:
            return Body(given["code"], tuple(dict.fromkeys(repairs)), fits=True)
        return Body(text)
    if plain.lstrip().startswith('"') and _is_json(plain) and "\\n" in plain:
        return Body(json.loads(plain), ("body",), fits=True)
    return Body(plain, tuple(repair for repair in dict.fromkeys(repairs) if repair != "json"))


def _patch(plain: str, found: object, repairs: list[str]) -> Body:
    """Return the patch text: the body itself, or the part of it that contains the patch."""
    held = _texts(found)
    patches = [text for text in held if "*** " in text]
    if len(patches) == 1:
        if not isinstance(found, dict) or list(found) not in (["patch"], ["input"]):
            repairs.append("arguments")
        plain = patches[0]
        if isinstance(found, dict) and "json" not in repairs and _ended(plain) != plain:
            plain = _ended(plain)
            repairs.append("body")
    elif found is None and plain.lstrip()[:1] in {"{", "[", '"'} and PATCH_BEGIN in plain and PATCH_END in plain:
        # Broken JSON around a complete patch.
        plain = plain[plain.index(PATCH_BEGIN) : plain.rindex(PATCH_END) + len(PATCH_END)]
        repairs.append("body")
    if "\n" not in plain.strip() and "\\n" in plain:
        plain = re.sub(r'\\([nt"\\])', lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), plain)
        repairs.append("body")
    script = _patch_in_script(plain)
    return Body(plain if script is None else script, tuple(dict.fromkeys(repairs)), fits=PATCH_BEGIN in plain)


def _texts(value: object) -> list[str]:
    match value:
        case str():
            return [value]
        case list():
            return [text for inner in value for text in _texts(inner)]
        case dict():
            return [text for inner in value.values() for text in _texts(inner)]
        case _:
            return []
