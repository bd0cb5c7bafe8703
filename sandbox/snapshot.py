"""The state that a run starts from: a git tree in a repository of our own; the user's repository is only read.

``state/base.git`` is a bare repository that borrows the objects of the user's (``objects/info/alternates``). The
snapshot's tree is what ``git add -A`` would record at this moment, made with a copy of the index: HEAD, and by default
the uncommitted and the untracked, not ignored changes. Everything that leaves the sandbox is compared with it on the host,
so the sandbox's own ``.git`` need not be trusted. Contents are in git's own (clean) form: a file under LFS is its
pointer, line endings are as committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox import plumbing
from sandbox.errors import DiffRefused, WorktreeError
from sandbox.guest import files

FULL_HISTORY_BYTES = (
    128 << 20
)  # a history up to this size is copied completely; of a larger one, only the latest commits
NEWEST_COMMITS = 200
GITLINK = 0o160000
DIFF = ("diff-tree", "-p", "--binary", "--full-index", "-M", "--no-ext-diff", "--no-textconv", "--no-color")


# Byproducts of running tests that nobody wants to commit, for repositories that do not ignore them themselves. The
# repository's .gitignore takes precedence, and tracked files are not affected.
BYPRODUCTS = b"__pycache__/\n*.py[co]\n.pytest_cache/\n.mypy_cache/\n.ruff_cache/\n.hypothesis/\n.coverage\n"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state that a run started from. ``commit`` is empty in a repository without commits."""

    repository: Path  # the root of the user's checkout
    git_dir: Path  # our bare repository
    common_dir: Path  # the user's git directory, shared by their worktrees
    commit: str
    branch: str  # the user's branch, "" if HEAD is detached
    head_tree: str  # the tree of ``commit`` (the empty tree without one)
    tree: str  # the tree that is copied in

    @property
    def dirty(self) -> bool:
        """Whether uncommitted changes are part of it."""
        return self.tree != self.head_tree


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a tree. ``mode`` is git's."""

    mode: int
    oid: str
    path: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """The change of one path between two trees; a mode is 0 if the path does not exist."""

    path: bytes
    old_mode: int
    new_mode: int
    old_oid: str
    new_oid: str


def take(repository: Path, state: Path, include_uncommitted: bool = True) -> Snapshot:
    """Record the repository's state in the folder ``state`` (created if necessary). The repository is only read.

    Raises WorktreeError if it is not a git repository, is bare, or cannot be read.
    """
    asked = ["--show-toplevel", "--git-common-dir", "--git-path", "index", "--show-object-format"]
    command = ["rev-parse", "--path-format=absolute"]
    done = plumbing.attempt([*command, *asked], repository)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise WorktreeError(
            f"{repository} is not a git working tree ({said}); "
            "run the agent inside a checkout, or make one with: git init && git add -A && git commit"
        )
    answers = done.stdout.removesuffix(b"\n").split(b"\n")
    if len(answers) != 4:  # a path contains a newline
        each = (asked[:1], asked[1:2], asked[2:4], asked[4:])
        answers = [plumbing.run([*command, *one], repository).removesuffix(b"\n") for one in each]
    top, common, index, object_format = map(os.fsdecode, answers)
    head = plumbing.attempt(["rev-parse", "HEAD^{commit}", "HEAD^{tree}"], repository)
    commit, head_tree = head.stdout.decode().split() if not head.returncode else ("", "")
    branch = plumbing.attempt(["symbolic-ref", "-q", "--short", "HEAD"], repository).stdout.decode().strip()
    git_dir = state / "base.git"
    _make_bare(git_dir, Path(common), object_format)
    head_tree = head_tree or plumbing.bare(git_dir, ["mktree"]).decode().strip()
    tree = _uncommitted(Path(top), git_dir, Path(common), Path(index), head_tree) if include_uncommitted else head_tree
    snapshot = Snapshot(Path(top), git_dir, Path(common), commit, branch, head_tree, tree)
    plain = {key: str(value) for key, value in asdict(snapshot).items()}
    (state / "base.json").write_text(json.dumps(plain, indent=1), "utf-8")
    return snapshot


def load(state: Path) -> Snapshot:
    """Return the snapshot that ``take`` stored in a folder. Raises WorktreeError if there is none."""
    try:
        plain = json.loads((state / "base.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise WorktreeError(
            f"{state} contains no snapshot: this run was not started here, or its folder was cleaned"
        ) from error
    repository, common_dir = (Path(plain.pop(key)) for key in ("repository", "common_dir"))
    del plain["git_dir"]  # the folder may have been moved since
    return Snapshot(repository, state / "base.git", common_dir, **plain)


def items(snapshot: Snapshot, tree: str | None = None) -> list[Item]:
    """Return every file of the snapshot (or of another tree of its repository).

    Raises WorktreeError for a path that git would not check out: a crafted one may lead out of the repository.
    """
    listed = plumbing.bare(snapshot.git_dir, ["ls-tree", "-r", "-z", "--full-tree", tree or snapshot.tree])
    found = []
    for line in listed.split(b"\0")[:-1]:
        meta, path = line.split(b"\t", 1)
        mode, _, oid = meta.split()
        if _misleads(path):
            raise WorktreeError(
                f"the commit contains the path {os.fsdecode(path)!r}, which git would not check out: it was made to attack tools; "
                "check where this repository comes from"
            )
        found.append(Item(int(mode, 8), oid.decode(), path))
    return found


def size_bytes(snapshot: Snapshot, listed: Sequence[Item]) -> int:
    """Return an estimate of the copy's size: the files in the checkout, and the history that is copied."""
    total = _packed_bytes(snapshot)
    if total > FULL_HISTORY_BYTES:
        total = FULL_HISTORY_BYTES
    for item in listed:
        with contextlib.suppress(OSError):
            total += (snapshot.repository / os.fsdecode(item.path)).lstat().st_size
    return total


def contents(snapshot: Snapshot, wanted: Sequence[Item]) -> Iterator[bytes]:
    """Yield the entries (sandbox/guest/files.py) of the wanted files.

    A file is read from the checkout if its hash is that of the tree; the others come from git.
    """
    others = []
    for item in wanted:
        if item.mode == GITLINK:
            continue
        data = from_checkout(snapshot.repository, item)
        if data is None:
            others.append(item)
        else:
            yield files.entry(item.path, item.mode, data)
    if others:
        yield from _from_git(snapshot, others)


def from_checkout(top: Path, item: Item, crlf: bool = False) -> bytes | None:
    """Return the bytes in the checkout if they match the tree (with ``crlf``, except for line endings)."""
    path = top / os.fsdecode(item.path)
    try:
        if item.mode == files.LINK:
            data = os.fsencode(path.readlink())
        else:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device may have no end
                    return None
                data = file.read()
    except OSError:
        return None
    plain = data.replace(b"\r\n", b"\n") if crlf else data
    algorithm = hashlib.sha256 if len(item.oid) == 64 else hashlib.sha1
    return data if algorithm(b"blob %d\0" % len(plain) + plain).hexdigest() == item.oid else None


def result(snapshot: Snapshot, changes: bytes) -> str:
    """Return the snapshot's tree with the entries from the sandbox applied.

    Raises DiffRefused if one of them is in a submodule or in a git directory.
    """
    links = {item.path for item in items(snapshot) if item.mode == GITLINK}
    removed, added = [], []
    for path, mode, data in files.entries(changes):
        _admit(path, links)
        if mode == files.GONE:
            removed.append(b"D %s\n" % _quoted(path))
        else:
            added.append(b"M %o inline %s\ndata %d\n" % (mode, _quoted(path), len(data)) + data + b"\n")
    start = b"commit refs/agent/result\ncommitter agent <agent> 0 +0000\ndata 0\n"
    whole = start + b'M 040000 %s ""\n' % snapshot.tree.encode() + b"".join(removed) + b"".join(added) + b"done\n"
    plumbing.bare(snapshot.git_dir, ["fast-import", "--quiet", "--force", "--done"], stdin=whole)
    return plumbing.bare(snapshot.git_dir, ["rev-parse", "refs/agent/result^{tree}"]).decode().strip()


def diff(snapshot: Snapshot, tree: str) -> bytes:
    """Return the unified diff (binary, modes, renames) from the snapshot to a tree of its repository."""
    return plumbing.bare(snapshot.git_dir, [*DIFF, snapshot.tree, tree])


def steps(snapshot: Snapshot, tree: str) -> list[Step]:
    """Return the differences between the snapshot and a tree of its repository, path by path."""
    raw = plumbing.bare(snapshot.git_dir, ["diff-tree", "-r", "-z", "--raw", "--no-renames", snapshot.tree, tree])
    fields = raw.split(b"\0")[:-1]
    found = []
    for meta, path in zip(fields[::2], fields[1::2], strict=True):
        old_mode, new_mode, old_oid, new_oid, _ = meta.decode().lstrip(":").split()
        found.append(Step(path, int(old_mode, 8), int(new_mode, 8), old_oid, new_oid))
    return found


def blobs(snapshot: Snapshot, oids: Iterable[str]) -> Iterator[bytes | None]:
    """Yield each object's content, None if git does not have it. Uses one process, and holds one object in memory at a time."""
    command = [*plumbing.PREFIX, "cat-file", "--batch"]
    env = plumbing.environment({**plumbing.ISOLATED, "GIT_DIR": str(snapshot.git_dir)})
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for oid in oids:
            process.stdin.write(oid.encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline().split()
            if len(answer) != 3:
                yield None
                continue
            data = process.stdout.read(int(answer[2]))
            process.stdout.read(1)
            yield data
        process.stdin.close()


def apply(snapshot: Snapshot, patch: bytes) -> str:
    """Return the snapshot's tree with a patch applied. Only an index is used, so no filter or attribute has an effect.

    Raises WorktreeError if the patch does not apply.
    """
    index = snapshot.git_dir / f"index.{os.getpid()}"
    env = {"GIT_INDEX_FILE": str(index)}
    try:
        plumbing.bare(snapshot.git_dir, ["read-tree", snapshot.tree], env)
        plumbing.bare(snapshot.git_dir, ["apply", "--cached", "--binary", "--whitespace=nowarn", "-"], env, patch)
        return plumbing.bare(snapshot.git_dir, ["write-tree"], env).decode().strip()
    finally:
        index.unlink(missing_ok=True)


def write_metadata(snapshot: Snapshot, folder: Path) -> None:
    """Write the copy's own ``.git`` into a folder: HEAD's history and tags, an index, and no remote, hook or secret.

    A history larger than FULL_HISTORY_BYTES is cut to NEWEST_COMMITS, as in a shallow clone.
    """
    branch = snapshot.branch or "main"
    head = snapshot.commit if snapshot.commit and not snapshot.branch else f"ref: refs/heads/{branch}"
    refs, shallow = list[str](), list[str]()
    (folder / "objects" / "pack").mkdir(parents=True)
    if snapshot.commit:
        shallow, tags = _pack(snapshot, folder / "objects" / "pack", _tags(snapshot))
        refs = [f"{snapshot.commit} refs/heads/{branch}"] if snapshot.branch else []
        refs += [f"{oid} {name}" for name, oid in tags]
    config = (snapshot.git_dir / "config").read_text("utf-8").replace("bare = true", "bare = false")
    config += "[user]\n\tname = gpt-oss-agent\n\temail = agent@localhost\n[gc]\n\tauto = 0\n"
    texts = {"HEAD": head, "config": config, "packed-refs": "\n".join(refs), "shallow": "\n".join(shallow)}
    for name, text in texts.items():
        if text:
            (folder / name).write_bytes(text.rstrip("\n").encode("utf-8", "surrogateescape") + b"\n")
    plumbing.bare(snapshot.git_dir, ["read-tree", snapshot.head_tree], {"GIT_INDEX_FILE": str(folder / "index")})


def metadata(folder: Path) -> Iterator[bytes]:
    """Yield the entries of what ``write_metadata`` wrote, in pieces."""
    for name in (b".git/refs/heads/.keep", b".git/objects/.keep"):  # git requires these folders in a repository
        yield files.entry(name, files.FILE, b"") + files.entry(name, files.GONE, b"")
    for path in sorted(found for found in folder.rglob("*") if found.is_file()):
        name = b".git/" + os.fsencode(path.relative_to(folder))
        with path.open("rb") as file:
            yield files.ENTRY.pack(len(name), files.FILE, path.stat().st_size) + name
            while piece := file.read(1 << 20):
                yield piece


def excludes(snapshot: Snapshot) -> bytes:
    """Return the ignore rules that are not in the repository: byproducts of tools, the user's own rules, and the clone's."""
    named = plumbing.attempt(["config", "--type=path", "core.excludesFile"], snapshot.repository).stdout
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    own = Path(os.fsdecode(named.rstrip(b"\n"))) if named else home / "git" / "ignore"
    found = [path.read_bytes() for path in (own, snapshot.common_dir / "info" / "exclude") if path.is_file()]
    return b"\n".join([BYPRODUCTS, *found])


def _make_bare(git_dir: Path, common: Path, object_format: str) -> None:
    """Create our repository without ``git init`` (which saves a process), borrowing the user's objects."""
    if git_dir.exists():
        shutil.rmtree(git_dir)
    for folder in ("objects/info", "objects/pack", "refs/heads"):
        (git_dir / folder).mkdir(parents=True)
    version, extension = (
        (0, "") if object_format == "sha1" else (1, f"[extensions]\n\tobjectformat = {object_format}\n")
    )
    core = f"[core]\n\trepositoryformatversion = {version}\n\tbare = true\n\tfilemode = true\n"
    (git_dir / "HEAD").write_text("ref: refs/heads/none\n", "utf-8")
    (git_dir / "config").write_text(core + extension, "utf-8")
    (git_dir / "objects/info/alternates").write_bytes(_quoted_line(common / "objects"))
    if (common / "shallow").is_file():
        shutil.copyfile(common / "shallow", git_dir / "shallow")


def _quoted_line(path: Path) -> bytes:
    """Return a path as a line of ``alternates`` or an item of its variable (quoted if git would misread it)."""
    raw = os.fsencode(path)
    return (_quoted(raw) if b"\n" in raw or b":" in raw or raw.startswith((b'"', b"#")) else raw) + b"\n"


def _uncommitted(top: Path, git_dir: Path, common: Path, index: Path, head_tree: str) -> str:
    """Return the tree that ``git add -A`` would make, without changing the user's index or objects."""
    copy = git_dir / "index.person"
    env = {
        "GIT_INDEX_FILE": str(copy),
        "GIT_OBJECT_DIRECTORY": str(git_dir / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted_line(common / "objects")[:-1].decode("utf-8", "surrogateescape"),
    }
    if index.is_file():
        shutil.copyfile(index, copy)
    try:
        # Only paths that are not ignored already: git refuses ignored paths as arguments, even to exclude them.
        own = environments(top)
        if own:
            ignored = plumbing.attempt(["check-ignore", "-z", "--stdin"], top, env, _nul(own)).stdout.split(b"\0")
            own = [f":(exclude,top,literal){name}" for name in own if os.fsencode(name) not in ignored]
        try:
            plumbing.run([*plumbing.UNSYNCED, "-c", "core.looseCompression=0", "add", "-A", "--", ":/", *own], top, env)
        except WorktreeError as error:
            raise WorktreeError(
                f"uncommitted files cannot be copied: {error}. Put the file into .gitignore, make it readable, or use "
                "--no-uncommitted"
            ) from error
        staged = plumbing.run(["ls-files", "-s", "-z"], top, env).split(b"\0")
        links = {line.split(b"\t", 1)[1] for line in staged if line.startswith(b"160000 ")}
        if links:  # a repository inside the checkout that is not a submodule does not belong to this one
            known = plumbing.run(["ls-tree", "-r", "-z", "--full-tree", head_tree], top, env).split(b"\0")
            links -= {line.split(b"\t", 1)[1] for line in known if line.startswith(b"160000 ")}
            plumbing.run(["update-index", "-z", "--force-remove", "--stdin"], top, env, _nul(map(os.fsdecode, links)))
        return plumbing.run(["write-tree"], top, env).decode().strip()
    finally:
        copy.unlink(missing_ok=True)


def _nul(names: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def environments(top: Path) -> list[str]:
    """Return the names of virtual environments in the checkout: installed packages are not part of the source."""
    return [name for name in (".venv", "venv", "env", ".env") if (top / name / "pyvenv.cfg").is_file()]


def _from_git(snapshot: Snapshot, wanted: Sequence[Item]) -> Iterator[bytes]:
    for item, data in zip(wanted, blobs(snapshot, (item.oid for item in wanted)), strict=True):
        if data is None:
            name = os.fsdecode(item.path)
            raise WorktreeError(
                f"git has no content for {name} ({item.oid}): a partial clone? Get it with: git checkout -- {name!r}"
            )
        yield files.entry(item.path, item.mode, data)


def _tags(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return (name, object) of the tags on HEAD's history: versions are often derived from them."""
    arguments = ["for-each-ref", "--merged", snapshot.commit, "--format=%(objectname) %(refname)", "refs/tags"]
    listed = plumbing.run(arguments, snapshot.repository).decode("utf-8", "surrogateescape").splitlines()
    return [(line.split(" ", 1)[1], line.split(" ", 1)[0]) for line in listed]


def _packed_bytes(snapshot: Snapshot) -> int:
    return sum(path.stat().st_size for path in (snapshot.common_dir / "objects" / "pack").glob("*.pack"))


def _pack(snapshot: Snapshot, folder: Path, tags: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Write HEAD's history as a pack into a folder; return the commits without their parents, and the tags in it."""
    source = snapshot.git_dir / "shallow"
    shallow = source.read_text("utf-8").split() if source.is_file() else []
    wanted = [snapshot.commit, *(oid for _, oid in tags)]
    if _packed_bytes(snapshot) > FULL_HISTORY_BYTES:
        arguments = ["rev-list", "--parents", f"--max-count={NEWEST_COMMITS}", snapshot.commit]
        lines = [line.split() for line in plumbing.bare(snapshot.git_dir, arguments).decode().splitlines()]
        taken = {line[0] for line in lines}
        cut = {line[0] for line in lines if not taken.issuperset(line[1:])}
        shallow, tags, wanted = sorted(cut | (taken & set(shallow))), [], [snapshot.commit]
    asked = "".join(f"--shallow {oid}\n" for oid in shallow) + "".join(f"{oid}\n" for oid in wanted)
    # Packed objects are copied as they are, deltas included; for the rest, no deltas are searched and nothing is compressed: the
    # pack is sent once over a local socket, so speed matters more than size.
    arguments = [
        "pack-objects",
        "--revs",
        "--delta-base-offset",
        "--window=0",
        "--compression=0",
        "-q",
        str(folder / "pack"),
    ]
    if any((snapshot.common_dir / "objects" / "pack").glob("*.promisor")):
        arguments.insert(1, "--missing=allow-any")  # a partial clone: objects that were not fetched are left out
    # git writes a pack among its own objects and renames it: both must be on the same file system.
    own = {
        "GIT_OBJECT_DIRECTORY": str(folder.parent),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": os.fsdecode(_quoted_line(snapshot.git_dir / "objects")[:-1]),
    }
    plumbing.bare(snapshot.git_dir, arguments, own, asked.encode())
    return shallow, tags


def _admit(path: bytes, links: set[bytes]) -> None:
    """Raise DiffRefused for paths that must not reach fast-import. The checks of the diff come later and have more rules."""
    parts = path.split(b"/")
    name = os.fsdecode(path)
    if _misleads(path):
        raise DiffRefused(f"{name}: a path in a git directory, or that leaves the root, may not leave the sandbox")
    for end in range(1, len(parts) + 1):
        if b"/".join(parts[:end]) in links:
            raise DiffRefused(f"{name}: it is in a submodule; submodules may not be changed")


def _misleads(path: bytes) -> bool:
    """Whether a path leads out of a repository, or into its git directory."""
    return any(part.lower() == b".git" or part in (b"", b".", b"..") for part in path.split(b"/"))


def _quoted(path: bytes) -> bytes:
    """Return a path in git's C-style quotes."""
    return b'"' + b"".join(bytes([c]) if 32 <= c < 127 and c not in b'"\\' else b"\\%03o" % c for c in path) + b'"'
