"""The files of the workspace: copied in from a stream, and compared with the copied state later.

Runs inside the sandbox on Python 3.6 and later. The stamps of the copied files (size, times, inode) stay in this process's
memory, where commands cannot reach them, and only the kernel sets the change time: so changes are found without trusting the
workspace's own ``.git``.

::

    entry    path length (4)  mode (4)  size (8)  path  data          big endian; git's modes; mode 0 = removed
"""

import contextlib
import errno
import os
import stat
import struct
import time
from typing import BinaryIO, Dict, Iterator, List, Optional, Set, Tuple

from sandbox.guest import ignore, removal

ENTRY = struct.Struct(">IIQ")
FILE, PROGRAM, LINK, GONE = 0o100644, 0o100755, 0o120000, 0
CHUNK_BYTES = 1 << 16
MAX_IGNORE_BYTES = 1 << 20
# Errors that mean that a path does not exist (any more) or is too long. Other errors say nothing about it.
GONE_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
CLOCK_TICK_S = 0.02  # file times are no finer than the kernel's tick (10 ms at worst)

Stamp = Tuple[int, int, int, int, int]


class TooLarge(Exception):
    """The changes exceed the limit."""


def entry(path: bytes, mode: int, data: bytes) -> bytes:
    """Return one file in the wire format."""
    return ENTRY.pack(len(path), mode, len(data)) + path + data


def entries(stream: bytes) -> Iterator[Tuple[bytes, int, bytes]]:
    """Yield (path, mode, data) of each entry of a complete stream."""
    at = 0
    while at < len(stream):
        length, mode, size = ENTRY.unpack_from(stream, at)
        at += ENTRY.size
        yield stream[at : at + length], mode, stream[at + length : at + length + size]
        at += length + size


def read(path: bytes, limit_bytes: int) -> Iterator[bytes]:
    """Yield a regular file's bytes. Refuses pipes and devices, which would block the helper, and files above the limit."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(errno.EPERM, "Not a regular file", path)
        sent = 0
        while max(sent, status.st_size) <= limit_bytes:
            data = file.read(CHUNK_BYTES)
            if not data:
                return
            sent += len(data)
            yield data
        raise OSError(errno.EFBIG, "File too large", path)


def write(path: bytes, data: bytes, executable: Optional[bool]) -> None:
    """Write a file atomically; links are followed, missing parent folders are created."""
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(21, "Is a directory", path)
    _make_folders(os.path.dirname(path))
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mode = 0o644
    if executable is not None:
        mode = mode | 0o111 if executable else mode & ~0o111
    beside = path + b".%d~" % os.getpid()
    try:
        with open(beside, "wb") as file:
            file.write(data)
        os.chmod(beside, mode)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


class Tree:
    """The workspace and its state when it was copied in."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self._stamps: Dict[bytes, Tuple[int, Stamp]] = {}
        self._folders: Set[bytes] = set()
        self._skip: Set[bytes] = set()
        self._rules: List[ignore.Rule] = []

    def path(self, path: bytes) -> bytes:
        """Return the file system path for a path of the protocol."""
        return os.path.join(self.root, path)

    def begin(self, excludes: bytes, skip: List[bytes]) -> None:
        """Set the ignore rules that are not in the repository, and the paths that do not belong to it (mounts)."""
        self._rules = ignore.parse(excludes, b"")
        self._skip = set(skip)

    def record(self, path: bytes, mode: int) -> None:
        """Record the current stamp of a copied file."""
        if path.split(b"/", 1)[0] == b".git":
            return
        self._stamps[path] = (mode, _stamp(os.lstat(self.path(path))))
        while b"/" in path:
            path = path.rsplit(b"/", 1)[0]
            if path in self._folders:
                return
            self._folders.add(path)

    def settle(self) -> None:
        """Wait for the clock's next tick, so that no later change can have the time of the copy."""
        time.sleep(CLOCK_TICK_S)

    def changes(self, limit_bytes: int, limit_files: int) -> Iterator[bytes]:
        """Yield an entry for each changed path, removed ones first; new ignored files are left out.

        Raises TooLarge if the entries exceed ``limit_bytes`` or ``limit_files``.
        """
        changed: List[bytes] = []
        seen: Set[bytes] = set()
        for path, status in self._walk():
            seen.add(path)
            before = self._stamps.get(path)
            if before is None or before[1] != _stamp(status):
                changed.append(path)
        gone = sorted(self._stamps.keys() - seen)
        if len(gone) + len(changed) > limit_files:
            raise TooLarge((gone + changed)[0])
        total = 0
        for path in gone:
            yield entry(path, GONE, b"")
        for path in changed:
            found = self._load(path, limit_bytes - total)
            if found is None:
                if path in self._stamps:
                    yield entry(path, GONE, b"")
                continue
            total += len(found[1]) + len(path)
            if total > limit_bytes:
                raise TooLarge(path)
            yield ENTRY.pack(len(path), found[0], len(found[1])) + path
            yield found[1]

    def _walk(self) -> Iterator[Tuple[bytes, os.stat_result]]:
        """Yield every file and link that is tracked or not ignored, with its status."""
        todo: List[Tuple[bytes, List[ignore.Rule], bool]] = [(b"", self._rules, False)]
        while todo:
            prefix, rules, tracked_only = todo.pop()
            names = _names(self.path(prefix))
            if b".gitignore" in names and not tracked_only:
                rules = rules + ignore.parse(_small_file(self.path(prefix + b".gitignore")), prefix)
            for name in names:
                path = prefix + name
                if name.lower() == b".git" or path in self._skip:
                    continue
                try:
                    status = os.lstat(self.path(path))
                except OSError as error:
                    if error.errno not in GONE_ERRORS:
                        raise
                    continue
                if stat.S_ISDIR(status.st_mode):
                    hidden = tracked_only or ignore.ignored(rules, path, folder=True)
                    if not hidden or path in self._folders:
                        todo.append((path + b"/", rules, hidden))
                elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                    hidden = tracked_only or ignore.ignored(rules, path, folder=False)
                    if path in self._stamps or not hidden:
                        yield path, status

    def _load(self, path: bytes, limit_bytes: int) -> Optional[Tuple[int, bytes]]:
        """Return a path's mode and bytes, or None if it is gone. A file that its owner made unreadable is read nevertheless."""
        full = self.path(path)
        try:
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                return LINK, os.readlink(full)
            mode = PROGRAM if status.st_mode & 0o100 else FILE
            if not status.st_mode & 0o400:
                os.chmod(full, stat.S_IMODE(status.st_mode) | 0o400)
            return mode, b"".join(read(full, limit_bytes))
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise TooLarge(path) from error
            if error.errno not in GONE_ERRORS:
                raise
            return None


class Loader:
    """Writes a stream of entries as files, chunk by chunk, so that a large repository is never held in memory."""

    def __init__(self, tree: Tree, keep: bool) -> None:
        self._tree = tree
        self._keep = keep  # whether the files are the base for finding changes
        self._buffer = bytearray()
        self._file: Optional[BinaryIO] = None
        self._left = 0
        self._path, self._mode = b"", 0

    def feed(self, data: bytes) -> None:
        """Process the next piece of the stream."""
        if self._file is not None and len(data) <= self._left and not self._buffer:  # the middle of a large file
            self._file.write(data)
            self._left -= len(data)
            if not self._left:
                self._close()
            return
        self._buffer += data
        while self._step():
            pass

    def _step(self) -> bool:
        """Process the header of an entry, or the rest of its data, if it has arrived; return whether it had."""
        buffer = self._buffer
        if self._file is None:
            if len(buffer) < ENTRY.size:
                return False
            length, mode, size = ENTRY.unpack_from(buffer)
            start = ENTRY.size + length
            whole = mode in (LINK, GONE)
            if len(buffer) < start + (size if whole else 0):
                return False
            self._path, self._mode, self._left = bytes(buffer[ENTRY.size : start]), mode, size
            full = self._tree.path(self._path)
            if whole:
                self._place(full, bytes(buffer[start : start + size]))
                del buffer[: start + size]
                return True
            del buffer[:start]
            self._file = self._open(full)
        took = min(self._left, len(buffer))
        self._file.write(memoryview(buffer)[:took])
        self._left -= took
        del buffer[:took]
        if self._left:
            return False
        self._close()
        return True

    def _open(self, full: bytes) -> BinaryIO:
        permissions = 0o755 if self._mode == PROGRAM else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        if not self._keep:  # replaces an existing file: its mode, or its being a link, must not survive
            _clear(full)
        try:
            return open(os.open(full, flags, permissions), "wb", buffering=0)
        except FileNotFoundError:
            _make_folders(os.path.dirname(full))
            return open(os.open(full, flags, permissions), "wb", buffering=0)

    def _place(self, full: bytes, target: bytes) -> None:
        if self._mode == GONE:
            _unlink(full)
        elif not self._keep:
            _clear(full)
        if self._mode == LINK:
            _make_folders(os.path.dirname(full))
            os.symlink(target, full)
            if self._keep:
                self._tree.record(self._path, self._mode)

    def _close(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        if self._keep:
            self._tree.record(self._path, self._mode)


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _unlink(full: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(full)


def _clear(full: bytes) -> None:
    """Remove what is in the way, even a folder with only ignored files left in it."""
    if os.path.isdir(full) and not os.path.islink(full):
        removal.remove_tree(os.fsdecode(full))
    else:
        _unlink(full)


def _make_folders(folder: bytes) -> None:
    """Create a folder and its parents, at any depth (os.makedirs is recursive)."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for each in reversed(missing):
        os.mkdir(each)


def _names(folder: bytes) -> List[bytes]:
    """Return the names in a folder, none if it is gone. An unreadable folder is made readable: unseen files would count as removed."""
    try:
        if not os.access(folder, os.R_OK | os.X_OK):
            os.chmod(folder, 0o700)
        return sorted(os.listdir(folder))
    except OSError as error:
        if error.errno not in GONE_ERRORS:
            raise
        return []


def _small_file(full: bytes) -> bytes:
    """Return an ignore file's text; symbolic links and huge files are ignored, as in git."""
    try:
        status = os.lstat(full)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_IGNORE_BYTES:
            return b""
        return b"".join(read(full, MAX_IGNORE_BYTES))
    except OSError:
        return b""
