"""The reading tools: open_file, search, print_tree and list_dir. Each call is one command in the sandbox."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from agent.conversation import ToolSpec
from agent.events import ToolResult
from agent.tools.text import CallError, arguments, decoded, number_argument, refuse, text_argument
from sandbox.base import ExecResult, Sandbox

OPEN_EXAMPLE = '{"path": "src/app.py", "line_start": 1, "line_end": 80}'
SEARCH_EXAMPLE = '{"path": "src", "query": "def slugify"}'
LIST_EXAMPLE = '{"path": "", "depth": 2}'

TIMEOUT_S = 60.0
MISSING, FOLDER, NOT_FOLDER = 44, 45, 46  # exit codes of our own scripts
MAX_LINE_BYTES = 1000
LISTING_BYTES = 1 << 20

# The scripts are POSIX sh and awk, which every image with a shell has. 44, 45 and 46 are the exit codes above.
# For a missing path, files of the same name are listed, because the model may have guessed the wrong folder.
_MISSING = """\
missing() {
  find . -name .git -prune -o -name node_modules -prune -o -name "${1##*/}" -print 2>/dev/null | head -n 5
  exit 44
}
"""

# path, first line, last line (0: all), bytes to show, bytes of a line to show, 1 for line numbers.
# Gives the lines, then "last line shown, lines in the file, 1 when they did not fit".
_OPEN = (
    _MISSING
    + """
[ -e "$1" ] || missing "$1"
[ ! -d "$1" ] || exit 45
LC_ALL=C exec awk -v from="$2" -v to="$3" -v room="$4" -v wide="$5" -v numbers="$6" '
  NR >= from && (to == 0 || NR <= to) && !full {
    line = $0
    if (length(line) > wide) line = substr(line, 1, wide) " [" (length(line) - wide) " more bytes in this line]"
    if (numbers) line = NR "\\t" line
    room -= length(line) + 1
    if (room < 0 && last) { full = 1; next }
    last = NR
    print line
  }
  END { printf "%d %d %d", last, NR, full }' < "$1"
"""
)

# expression, path, lines to show, literal text, bytes of a line to show. Gives the lines, then how many there are.
_SEARCH = (
    _MISSING
    + """
case $2 in /*) glob= ;; *[*?]*) glob=1 ;; *) glob= ;; esac
[ "$glob" ] || [ -e "$2" ] || missing "$2"
path=$2 most=$3 wide=$5
look() {  # -E or -F, expression
  code=2
  if [ "${path#/}" = "$path" ]; then
    git -c core.quotePath=false grep -nI --untracked "$1" -e "$2" -- "$path" 2>/dev/null
    code=$?
  fi
  # More than 1: this is no repository, or the expression is wrong, which grep finds as well.
  [ "$code" -le 1 ] || grep -rnIH --exclude-dir=.git "$1" -e "$2" -- "$path" 2>/dev/null
}
show() {
  LC_ALL=C awk -v most="$most" -v wide="$wide" 'NR <= most { print substr($0, 1, wide) } END { printf "%d", NR }'
}
found=$(look -E "$1" | show)
if [ "$found" = 0 ]; then found=$(look -F "$4" | show); fi
printf '%s' "$found"
"""
)

# folder, depth. Gives the paths below the folder, those of folders with a slash at the end.
_LIST = (
    _MISSING
    + """
[ -e "$1" ] || missing "$1"
[ -d "$1" ] || exit 46
cd -- "$1" || exit 1
set -f
hidden='-name .git -o -name __pycache__ -o -name node_modules -o -name .venv -o -name .mypy_cache -o -name .pytest_cache'
find . -mindepth 1 -maxdepth "$2" \\( $hidden \\) -prune -o -type d -print 2>/dev/null | sed 's|$|/|'
find . -mindepth 1 -maxdepth "$2" \\( $hidden \\) -prune -o ! -type d -print 2>/dev/null
"""
)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """Shows a file or a range of its lines."""

    max_output_bytes: int
    name: str = "open_file"
    writes: bool = False

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        properties = {
            "path": _text("The file."),
            "line_start": _whole("First line to show, from 1."),
            "line_end": _whole("Last line to show."),
            "line_numbers": {"type": "boolean", "description": "Put the number in front of each line."},
        }
        return ToolSpec(self.name, "Show a file, or some of its lines.", _object(properties, "path"))

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Take ``{"path", "line_start"?, "line_end"?, "line_numbers"?}``. Raises SandboxError when the sandbox is broken."""
        try:
            return self._show(arguments(text, OPEN_EXAMPLE), sandbox)
        except CallError as error:
            return refuse(str(error))

    def _show(self, given: dict[str, Any], sandbox: Sandbox) -> ToolResult:
        path = _relative(text_argument(given, "path", OPEN_EXAMPLE), sandbox)
        first = number_argument(given, "line_start", OPEN_EXAMPLE) or 1
        last = number_argument(given, "line_end", OPEN_EXAMPLE) or 0
        if last and last < first:
            raise CallError(f"The range ends (line {last}) before it starts (line {first}).")
        numbers = "1" if given.get("line_numbers") is True else "0"
        words = (path, str(first), str(last), str(self.max_output_bytes), str(MAX_LINE_BYTES), numbers)
        result = _look(sandbox, _OPEN, words, path, self.max_output_bytes * 2)
        body, _, counts = decoded(result.output).rpartition("\n")
        if not counts.startswith("0 ") and not body:
            body, counts = "", decoded(result.output)
        shown, total, full = (int(word) for word in counts.split())
        if not shown:
            what = "is empty" if not total else f"has only {total} lines"
            return ToolResult(f"{path} {what}.", ok=total == 0, duration_s=result.duration_s)
        if 4 * (body.count("\ufffd") + body.count("\0")) > len(body):
            return refuse(f"{path} is not UTF-8 text. Look at it with a program, such as file, xxd or iconv.")
        more = "" if not full else f" The rest did not fit: go on from line {shown + 1}."
        head = f"[{path}, lines {first} to {shown} of {total}.{more}]"
        return ToolResult(f"{head}\n{body}", duration_s=result.duration_s)


@dataclass(frozen=True, slots=True)
class Search:
    """Finds lines in files: by regular expression first, and by literal text if that finds nothing."""

    max_output_bytes: int
    name: str = "search"
    writes: bool = False

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        properties = {
            "path": _text("File or folder to search; empty for the whole repository."),
            "query": _text("Text or extended regular expression, case-sensitive."),
            "max_results": _whole("Most lines to show; 50 if not given."),
        }
        return ToolSpec(
            self.name,
            "Find lines in the repository's files; gives file:line:text.",
            _object(properties, "path", "query"),
        )

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Take ``{"query", "path"?, "max_results"?}``. Raises SandboxError when the sandbox is broken."""
        try:
            return self._find(arguments(text, SEARCH_EXAMPLE), sandbox)
        except CallError as error:
            return refuse(str(error))

    def _find(self, given: dict[str, Any], sandbox: Sandbox) -> ToolResult:
        query = text_argument(given, "query", SEARCH_EXAMPLE)
        path = _relative(text_argument(given, "path", SEARCH_EXAMPLE, ""), sandbox)
        most = number_argument(given, "max_results", SEARCH_EXAMPLE, low=1) or 50
        if not query or "\n" in query:
            raise CallError(f"The query must be one line of text. A correct call's body: {SEARCH_EXAMPLE}")
        # POSIX expressions lack \d; the GNU and git versions support everything else that models usually write.
        pattern = re.sub(r"(?<!\\)((?:\\\\)*)\\d", r"\1[0-9]", query)
        words = (pattern, path, str(most), query, str(MAX_LINE_BYTES))
        result = _look(sandbox, _SEARCH, words, path, self.max_output_bytes)
        body, _, count = decoded(result.output).rpartition("\n")
        if not count.isdigit():
            return refuse(f"The search failed: {decoded(result.output)[:300]}")
        where = "the repository" if path == "." else path
        if count == "0":
            return ToolResult(f"No line in {where} matches {query!r}.", duration_s=result.duration_s)
        more = f"\n[{most} of {count} lines are shown; narrow the path or the query.]" if int(count) > most else ""
        return ToolResult(f"{body}{more}", duration_s=result.duration_s, cut_bytes=result.truncated_bytes)


@dataclass(frozen=True, slots=True)
class ListDir:
    """Lists a folder, some levels deep."""

    max_output_bytes: int
    name: str = "list_dir"
    writes: bool = False

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        properties = {
            "path": _text("The folder; empty for the repository's root."),
            "depth": _whole("Levels to list; 1 if not given."),
        }
        return ToolSpec(self.name, "List a folder's files; folders end with a slash.", _object(properties, "path"))

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Take ``{"path"?, "depth"?}``. Raises SandboxError when the sandbox is broken."""
        return _listing(text, sandbox, 1, self.max_output_bytes, tree=False)


@dataclass(frozen=True, slots=True)
class PrintTree:
    """Draws the files below a folder as a tree."""

    max_output_bytes: int
    name: str = "print_tree"
    writes: bool = False

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        properties = {
            "path": _text("The folder; empty for the repository's root."),
            "depth": _whole("Levels to show; 3 if not given."),
        }
        return ToolSpec(self.name, "Show the files below a folder as a tree.", _object(properties, "path"))

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Take ``{"path"?, "depth"?}``. Raises SandboxError when the sandbox is broken."""
        return _listing(text, sandbox, 3, self.max_output_bytes, tree=True)


def _listing(text: str, sandbox: Sandbox, depth: int, max_output_bytes: int, *, tree: bool) -> ToolResult:
    try:
        given = arguments(text, LIST_EXAMPLE)
        path = _relative(text_argument(given, "path", LIST_EXAMPLE, ""), sandbox)
        depth = number_argument(given, "depth", LIST_EXAMPLE, low=1) or depth
        result = _look(sandbox, _LIST, (path, str(depth)), path, LISTING_BYTES)
    except CallError as error:
        return refuse(str(error))
    entries = sorted(line.removeprefix("./") for line in decoded(result.output).split("\n") if line)
    if not entries:
        return ToolResult(f"{path} is empty.", duration_s=result.duration_s)
    shown = depth
    while True:
        level = [entry for entry in entries if entry.rstrip("/").count("/") < shown]
        body = "\n".join(_branch(entry) if tree else entry for entry in level)
        if shown == 1 or len(body.encode()) <= max_output_bytes:
            break
        shown -= 1
    left_out = len(entries) - len(level)
    data = body.encode()
    if len(data) > max_output_bytes:
        body = data[:max_output_bytes].decode("utf-8", "ignore").rpartition("\n")[0]
        left_out += len(level) - body.count("\n") - 1
    if left_out or result.truncated_bytes:
        body += f"\n[{left_out} or more entries did not fit; list a folder below.]"
    return ToolResult(
        body, duration_s=result.duration_s, cut_bytes=result.truncated_bytes + max(len(data) - len(body.encode()), 0)
    )


def _branch(entry: str) -> str:
    """Return one line of a tree, indented by its depth."""
    parts = entry.rstrip("/").split("/")
    return "  " * (len(parts) - 1) + parts[-1] + ("/" if entry.endswith("/") else "")


def _relative(path: str, sandbox: Sandbox) -> str:
    """Return the path relative to the repository's root, if it is below it; "." for the root itself."""
    if path == sandbox.workspace or path.startswith(f"{sandbox.workspace}/"):
        path = path[len(sandbox.workspace) :].strip("/")
    return path or "."


def _look(sandbox: Sandbox, script: str, words: tuple[str, ...], path: str, max_output_bytes: int) -> ExecResult:
    """Run one of the scripts. Raises CallError for a path that does not exist or has the wrong kind."""
    if any("\0" in word for word in words):
        raise CallError("An argument contains a NUL byte.")
    # A path that starts with a dash is a path, not an option.
    guarded = tuple(f"./{word}" if word == path and word.startswith("-") else word for word in words)
    result = sandbox.exec(["/bin/sh", "-c", script, "sh", *guarded], TIMEOUT_S, max_output_bytes=max_output_bytes)
    match result.exit_code:
        case 0:
            return result
        case None:
            raise CallError(f"This took longer than {TIMEOUT_S:g} s and was stopped; look at a smaller part.")
        case _ if result.exit_code == MISSING:
            near = [line.removeprefix("./") for line in decoded(result.output).split("\n") if line]
            hint = f" Did you mean {' or '.join(near)}?" if near else " Use print_tree to see what there is."
            raise CallError(f"There is no {path}.{hint}")
        case _ if result.exit_code == FOLDER:
            raise CallError(f"{path} is a folder; use list_dir, or name a file in it.")
        case _ if result.exit_code == NOT_FOLDER:
            raise CallError(f"{path} is a file; use open_file.")
        case _:
            raise CallError(f"{path} could not be read: {decoded(result.output)[:300].strip()}")


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _whole(description: str) -> dict[str, Any]:
    return {"type": "integer", "description": description}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}
