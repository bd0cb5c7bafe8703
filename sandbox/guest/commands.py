"""Commands: started in a session of their own, with bounded output, and killed with all their descendants.

Runs inside the sandbox on Python 3.6 and later.
"""

import contextlib
import os
import signal
import subprocess
import time
from typing import Dict, List, NamedTuple, Optional, Set

MARK = "SANDBOX_COMMAND"  # in the environment of everything that a command starts
CHUNK_BYTES = 1 << 16
KILL_ROUNDS = 50


class Bounded:
    """Output of which head and tail are kept within a limit, and the number of bytes left out between them."""

    def __init__(self, limit_bytes: int) -> None:
        self._head_limit = limit_bytes - limit_bytes // 2
        self._tail_limit = limit_bytes // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.cut_bytes = 0

    def add(self, data: bytes) -> None:
        """Add output."""
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._tail_limit + CHUNK_BYTES:
            self._trim()

    def _trim(self) -> None:
        over = len(self._tail) - self._tail_limit
        if over > 0:
            del self._tail[:over]
            self.cut_bytes += over

    def whole(self) -> bytes:
        """Return head and tail, with a line between them that states the cut."""
        self._trim()
        if not self.cut_bytes:
            return bytes(self._head + self._tail)
        before = b"" if not self._head or self._head.endswith(b"\n") else b"\n"
        return bytes(self._head) + before + b"[... %d bytes left out ...]\n" % self.cut_bytes + bytes(self._tail)


class Command:
    """One running command."""

    def __init__(
        self,
        request: int,
        argv: List[str],
        cwd: str,
        env: Dict[str, str],
        timeout_s: float,
        limit_bytes: int,
        stdin: bytes,
    ) -> None:
        """Start it. Raises OSError if it cannot be started."""
        self.request = request
        self.output = Bounded(limit_bytes)
        self.stdin = memoryview(stdin)
        self.mark = "%s=%x" % (MARK, request)
        self.started_s = time.monotonic()
        self.deadline_s = self.started_s + timeout_s
        self.timed_out = False
        self.out_fd, write_fd = os.pipe()
        read_fd, self.in_fd = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=read_fd,
                stdout=write_fd,
                stderr=write_fd,
                cwd=cwd,
                env=dict(env, **{MARK: "%x" % request}),
                start_new_session=True,
                close_fds=False,  # the helper's descriptors are all close-on-exec, and it cannot read its own /proc/self/fd
            )
        except (OSError, ValueError, subprocess.SubprocessError):
            os.close(self.out_fd)
            self.close_stdin()
            raise
        finally:
            os.close(write_fd)
            os.close(read_fd)
        self.pid = self._process.pid
        os.set_blocking(self.out_fd, False)
        if stdin:
            os.set_blocking(self.in_fd, False)
        # When memory runs out, the kernel kills a command and not the helper.
        with contextlib.suppress(OSError), open("/proc/%d/oom_score_adj" % self.pid, "w") as file:
            file.write("1000")
        self.born = getattr(_process(self.pid), "born", 0)

    def ended(self, status: int) -> int:
        """Record the status from waitpid; return the exit code, 128 + N for death by signal N."""
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self._process.returncode = code
        return code

    def feed(self) -> bool:
        """Write what standard input accepts now; return False if there is no more to write."""
        try:
            written = os.write(self.in_fd, self.stdin[:CHUNK_BYTES])
        except BlockingIOError:
            return True
        except OSError:  # the command does not read any more
            self.stdin = self.stdin[:0]
            return False
        self.stdin = self.stdin[written:]
        return bool(self.stdin)

    def listen(self) -> bool:
        """Read one piece of output; return False at its end. Raises BlockingIOError if there is none now."""
        data = os.read(self.out_fd, CHUNK_BYTES)
        self.output.add(data)
        return bool(data)

    def close_stdin(self) -> None:
        """Close the command's standard input, if it is open."""
        if self.in_fd >= 0:
            os.close(self.in_fd)
            self.in_fd = -1


class Process(NamedTuple):
    """A process according to /proc."""

    pid: int
    parent: int
    group: int
    session: int
    born: int


def kill(command: Command, others: List[Command]) -> None:
    """Kill a command and everything it started, even processes that left its group and session.

    They are found by ancestry, group, session and the mark in the environment. An orphan that started after the command and
    belongs to no other command must be its own too (a descendant that forked twice and cleared its environment).
    They are stopped first, so that none can fork between being found and being killed.
    """
    found: Set[int] = set()
    for _ in range(KILL_ROUNDS):
        members = _members(command, others)
        if members <= found:
            break
        for pid in members - found:
            _signal(pid, signal.SIGSTOP)
        found |= members
    for pid in found:
        _signal(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(command.pid, signal.SIGKILL)


def kill_everything() -> None:
    """Kill every descendant of this process: the commands, and what they left in the background.

    This process adopts orphans (see main.harden), so ancestry also finds processes that left their group and session.
    """
    found: Set[int] = set()
    for _ in range(KILL_ROUNDS):
        parents = {process.pid: process.parent for process in _processes()}
        living = {pid for pid in parents if _descends(pid, parents)}
        if living <= found:
            break
        for pid in living:
            _signal(pid, signal.SIGSTOP)
        found |= living
    for pid in found:
        _signal(pid, signal.SIGKILL)


def _descends(pid: int, parents: Dict[int, int]) -> bool:
    seen: Set[int] = set()
    while pid in parents and pid not in seen:
        seen.add(pid)
        pid = parents[pid]
    return pid == os.getpid()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _members(command: Command, others: List[Command]) -> Set[int]:
    processes = _processes()
    kept = {other.pid for other in others}
    members = {command.pid}
    grown = True
    while grown:
        grown = False
        for process in processes:
            if process.pid in members or process.pid in kept:
                continue
            if (
                process.parent in members
                or command.pid in (process.group, process.session)
                or _carries(process.pid, command.mark)
                or _orphaned(process, command, kept)
            ):
                members.add(process.pid)
                grown = True
    return members


def _orphaned(process: Process, command: Command, kept: Set[int]) -> bool:
    if process.parent != os.getpid() or process.born <= command.born:  # if in the same tick, assume an older command's
        return False
    return not kept & {process.group, process.session}


def _carries(pid: int, mark: str) -> bool:
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return mark.encode() in file.read().split(b"\0")
    except OSError:
        return False


def _processes() -> List[Process]:
    """Return every living process except this one; none if there is no /proc."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    found = (_process(pid) for pid in pids if pid != os.getpid())
    return [process for process in found if process is not None]


def _process(pid: int) -> Optional[Process]:
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()  # the process name before it may contain anything
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
