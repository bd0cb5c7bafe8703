"""The apply_patch tool: applies a patch, planned by agent.patch, in the sandbox, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.conversation import ToolSpec
from agent.events import ToolResult
from agent.patch.model import EXAMPLE, AddFile, Fault, FileChange, Patch, PatchError
from agent.patch.model import Plan as PatchPlan
from agent.patch.parse import parse
from agent.patch.plan import plan
from agent.tools.text import bounded, refuse
from sandbox.base import Sandbox

DESCRIPTION = f"""\
Change files with a patch, whole or not at all. The lines that stay (one blank in front) and go (-) must be the file's own; \
give enough of them, or a line above after @@, that the place is the only one. Several files and several hunks may go in one \
patch; *** Add File: PATH, *** Delete File: PATH and *** Move to: PATH exist too. Example:
{EXAMPLE}"""

PARAMETERS = {
    "type": "object",
    "properties": {"patch": {"type": "string", "description": "The patch, from *** Begin Patch to *** End Patch."}},
    "required": ["patch"],
}

_LOOK_TIMEOUT_S = 30.0
# For each path: its kind and its real location. Links are followed; folders that do not exist yet are kept as written.
_LOOK = """\
for path do
  folder=$path rest=
  while [ ! -d "$folder" ]; do
    rest=${folder##*/}${rest:+/$rest}
    case $folder in */*) folder=${folder%/*};; *) folder=.;; esac
  done
  if [ -L "$path" ]; then real=$(readlink -f -- "$path"; echo x); else real=$(cd -P -- "$folder" && pwd -P; echo x); fi
  real=${real%?x}
  if [ ! -L "$path" ] && [ "$rest" ]; then real=$real/$rest; fi
  kind=none
  if [ -d "$path" ]; then kind=folder
  elif [ -f "$path" ]; then kind=file; if [ -x "$path" ]; then kind=program; fi
  elif [ -e "$path" ] || [ -L "$path" ]; then kind=other; fi
  printf '%s\\0%s\\0' "$kind" "$real"
done
pwd -P"""

_NAMED = """\
for name do
  find . -name .git -prune -o -name node_modules -prune -o -type f -name "$name" -print 2>/dev/null | head -n 3
done"""


@dataclass(frozen=True, slots=True)
class ApplyPatch:
    """Applies patches in the workspace; results are at most ``max_output_bytes`` long."""

    max_output_bytes: int
    name: str = "apply_patch"
    writes: bool = True

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        return ToolSpec(self.name, DESCRIPTION, PARAMETERS)

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Apply the patch ``text``. Raises SandboxError if the sandbox is broken."""
        try:
            # Lone surrogates cannot be written to a file; they are remains of damaged text.
            patch = parse(text.encode("utf-8", "replace").decode(), sandbox.workspace)
            kinds = _look(patch, sandbox)
            files = {path: sandbox.read(path) for path, kind in kinds.items() if kind in {"file", "program"}}
            planned = plan(patch, files, _elsewhere(patch, kinds, sandbox))
            _make(planned, kinds, sandbox)
        except PatchError as error:
            shown, cut = bounded(f"The patch was not applied; no file was changed.\n{error}", self.max_output_bytes)
            return ToolResult(shown, ok=False, cut_bytes=cut)
        except OSError as error:
            return refuse(
                f"The patch was not applied; no file was changed. {error.filename or 'A file'}: {error.strerror}."
            )
        notes = [f"Note: {note}." for note in planned.notes]
        shown, cut = bounded("\n".join(["Done.", *planned.summary, *notes]), self.max_output_bytes)
        return ToolResult(shown, cut_bytes=cut, changed_paths=tuple(change.path for change in planned.changes))


def _look(patch: Patch, sandbox: Sandbox) -> dict[str, str]:
    """Return what each path is now: none, file, program. Raises PatchError for paths that may not be changed.

    One command checks all of them, because every round trip delays the next request.
    """
    result = sandbox.exec(["/bin/sh", "-c", _LOOK, "sh", *patch.paths], _LOOK_TIMEOUT_S)
    *fields, root = result.output.decode("utf-8", "surrogateescape").split("\0")
    root = root.rstrip("\n")
    if result.exit_code != 0 or len(fields) != 2 * len(patch.paths):
        raise PatchError(Fault.FILE, f"the files could not be looked at: {root[:200]}")
    kinds: dict[str, str] = {}
    places: dict[str, str] = {}
    for path, kind, real in zip(patch.paths, fields[::2], fields[1::2], strict=True):
        if not real.startswith(f"{root}/"):
            raise PatchError(Fault.PATH, f"the path {path!r} leaves the repository through a link.")
        if ".git" in real.removeprefix(root).casefold().split("/"):
            raise PatchError(Fault.PATH, f"the path {path!r} leads into git's own folder through a link.")
        if kind in {"folder", "other"}:
            raise PatchError(Fault.FILE, f"{path} is {'a folder' if kind == 'folder' else 'not a regular file'}.")
        if real in places:
            raise PatchError(
                Fault.PATH, f"{path} and {places[real]} are one file through a link; use one of the names."
            )
        places[real] = path
        kinds[path] = kind
    return kinds


def _elsewhere(patch: Patch, kinds: dict[str, str], sandbox: Sandbox) -> list[str]:
    """Return files whose name is that of a missing file in the patch: the model may have guessed the wrong folder."""
    changed = [operation.path for operation in patch.operations if not isinstance(operation, AddFile)]
    names = {path.rsplit("/", 1)[-1] for path in changed if kinds[path] == "none"}
    if not names:
        return []
    result = sandbox.exec(["/bin/sh", "-c", _NAMED, "sh", *sorted(names)], _LOOK_TIMEOUT_S)
    return [line.removeprefix("./") for line in result.output.decode("utf-8", "replace").split("\n") if line]


def _make(planned: PatchPlan, kinds: dict[str, str], sandbox: Sandbox) -> None:
    """Write and remove files; if one step fails, undo the previous ones and raise its OSError."""
    done: list[FileChange] = []
    try:
        for change in planned.changes:
            _set(change.path, change.after, kinds.get(change.moved_from or ""), sandbox)
            done.append(change)
    except OSError:
        _undo(done, kinds, sandbox)
        raise


def _undo(done: Sequence[FileChange], kinds: dict[str, str], sandbox: Sandbox) -> None:
    for change in reversed(done):
        _set(change.path, change.before, kinds[change.path], sandbox)


def _set(path: str, content: bytes | None, kind: str | None, sandbox: Sandbox) -> None:
    if content is None:
        sandbox.remove(path)
    else:
        sandbox.write(path, content, {"program": True, "file": False}.get(kind or ""))
