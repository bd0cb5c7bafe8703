"""The helper process in the sandbox: runs commands and transfers files, over its standard input and output.

sandbox/link.py sends it as source; it runs on the sandbox's Python (3.6 and later) with the standard library only. In a container
it is process 1: no process inside can kill or stop it, it adopts and reaps every orphan, and the container ends with it.
It is not dumpable, so a command of the same user can neither trace it nor open its descriptors:
results cannot be forged. It outlives its host and serves the next one that says hello; without a host for
``grace_s`` it exits.
"""

import contextlib
import errno
import json
import os
import selectors
import signal
import time
from typing import Any, Dict, Iterator, List, Optional

from sandbox.guest import commands, files, frames
from sandbox.guest.removal import remove_tree

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
NOT_FOUND, NOT_STARTED = 127, 126
LATE_S = 1.0  # how long a killed command may take to be reaped
LAST_WORDS = 16  # pieces of output read after a command's end, so that a background flood cannot hold up its result


class Request:
    """A request while it arrives."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.body = bytearray()
        self.arguments: Dict[str, Any] = {}
        self.loader: Optional[files.Loader] = None
        self.failed: Optional[OSError] = None


class Guest:
    """One workspace, its commands, and the connection."""

    def __init__(self, in_fd: int, out_fd: int, settings: Dict[str, Any]) -> None:
        self._in_fd, self._out_fd = in_fd, out_fd
        self._workspace: str = settings["workspace"]
        self._env: Dict[str, str] = dict(os.environ, **settings["env"])
        self._grace_s: float = settings["grace_s"]
        self._tree = files.Tree(os.fsencode(self._workspace))
        self._decoder = frames.Decoder()
        self._requests: Dict[int, Request] = {}
        self._commands: Dict[int, commands.Command] = {}  # by process id
        self._heard_s = time.monotonic()
        self._open = True
        self._whole = False  # whether the copy is complete: a host that died earlier leaves half a repository
        self._selector = selectors.DefaultSelector()
        self._selector.register(in_fd, selectors.EVENT_READ, self._hear)
        wake_fd, waker_fd = os.pipe()
        os.set_blocking(wake_fd, False)
        os.set_blocking(waker_fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker_fd)
        self._selector.register(wake_fd, selectors.EVENT_READ, lambda: self._reap(wake_fd))

    def serve(self) -> None:
        """Serve until the host says bye, the input ends, or no host was heard for the grace period."""
        while self._open and time.monotonic() - self._heard_s < self._grace_s:
            ends = [command.deadline_s for command in self._commands.values()] + [self._heard_s + self._grace_s]
            for key, _ in self._selector.select(max(min(ends) - time.monotonic(), 0.0)):
                # Skip a descriptor that a previous handler closed, even if a new command has the same number by now.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self._enforce()

    # ---- the wire

    def _hear(self) -> None:
        data = os.read(self._in_fd, 1 << 18)
        self._open = bool(data)
        self._heard_s = time.monotonic()
        for kind, number, payload in self._decoder.feed(data):
            request = self._requests.setdefault(number, Request())
            if kind == frames.HEAD:
                request.head += payload
                continue
            if not request.arguments:
                self._begin(request)
            if kind == frames.DATA:
                self._take(request, payload)
            else:
                del self._requests[number]
                self._answer(number, request)

    def _begin(self, request: Request) -> None:
        request.arguments = json.loads(request.head.decode())
        if request.arguments["verb"] == "load":
            request.loader = files.Loader(self._tree, request.arguments["keep"])

    def _take(self, request: Request, payload: bytes) -> None:
        if request.loader is None:
            request.body += payload
        elif request.failed is None:
            try:
                request.loader.feed(payload)
            except OSError as error:
                request.failed = error

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._out_fd, view) :]

    def _reply(self, number: int, status: Dict[str, Any], data: bytes = b"") -> None:
        body = b"".join(frames.encode_all(frames.DATA, number, data))
        self._send(body + frames.encode(frames.END, number, json.dumps(status).encode()))

    # ---- the verbs

    def _answer(self, number: int, request: Request) -> None:
        verb = request.arguments["verb"]
        if verb == "exec":
            self._exec(number, request)
            return
        try:
            if request.failed is not None:
                raise request.failed
            for piece in self._run(verb, request):
                for frame in frames.encode_all(frames.DATA, number, piece):
                    self._send(frame)
        except OSError as error:
            self._reply(number, {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)})
        except ValueError as error:  # an impossible path: with a NUL, or a lone surrogate
            self._reply(number, {"errno": errno.EINVAL, "error": str(error)})
        except files.TooLarge as error:
            self._reply(number, {"too_large": os.fsdecode(error.args[0])})
        else:
            self._reply(number, {"whole": self._whole} if verb == "hello" else {})

    def _run(self, verb: str, request: Request) -> Iterator[bytes]:
        arguments = request.arguments
        if verb == "hello":
            self._grace_s = arguments["grace_s"]
            self._requests.clear()  # incomplete requests of a host that died
            for command in list(self._commands.values()):
                command.deadline_s = 0.0
        elif verb == "whole":
            self._whole = True
        elif verb == "bye":
            self._open = False
        elif verb == "begin":
            self._tree.begin(os.fsencode(arguments["excludes"]), [os.fsencode(path) for path in arguments["skip"]])
        elif verb == "load":
            self._tree.settle()
        elif verb == "changes":
            return self._tree.changes(arguments["limit_bytes"], arguments["limit_files"])
        elif verb == "read":
            return files.read(self._path(arguments), arguments["limit_bytes"])
        elif verb == "write":
            files.write(self._path(arguments), bytes(request.body), arguments["executable"])
        elif verb == "remove":
            os.unlink(self._path(arguments))
        return iter(())

    def _path(self, arguments: Dict[str, Any]) -> bytes:
        return self._tree.path(os.fsencode(arguments["path"]))

    def _exec(self, number: int, request: Request) -> None:
        arguments = request.arguments
        cwd = os.path.join(self._workspace, arguments["cwd"] or "")
        try:
            command = self._start(number, arguments, cwd, bytes(request.body))
        except (OSError, ValueError, IndexError) as error:
            name = arguments["argv"][0] if arguments["argv"] else "(empty command)"
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError, IndexError))
            if isinstance(error, OSError) and error.filename == cwd and not os.path.isdir(cwd):
                text = "cannot run %s: the working directory %s is not a folder\n" % (name, cwd)
            else:
                text = "cannot run %s: %s\n" % (name, getattr(error, "strerror", None) or error)
            status = {"exit": NOT_FOUND if missing else NOT_STARTED, "duration_s": 0.0, "cut_bytes": 0}
            self._reply(number, status, text.encode("utf-8", "replace"))
            return
        self._commands[command.pid] = command
        self._selector.register(command.out_fd, selectors.EVENT_READ, lambda: self._listen(command))
        if command.in_fd >= 0:
            self._selector.register(command.in_fd, selectors.EVENT_WRITE, lambda: self._feed(command))

    def _start(self, number: int, arguments: Dict[str, Any], cwd: str, stdin: bytes) -> commands.Command:
        env = dict(self._env, **arguments["env"])
        values = (number, arguments["argv"], cwd, env, arguments["timeout_s"], arguments["limit_bytes"], stdin)
        try:
            return commands.Command(*values)
        except (
            BlockingIOError
        ):  # the process limit is reached: a fork bomb in the background would block the run for good
            if os.getpid() != 1:
                raise
            os.kill(-1, signal.SIGKILL)  # kills everything except process 1 at once
            time.sleep(0.05)
            self._reap(None)
            return commands.Command(*values)

    # ---- running commands

    def _feed(self, command: commands.Command) -> None:
        if not command.feed():
            self._selector.unregister(command.in_fd)
            command.close_stdin()

    def _listen(self, command: commands.Command) -> bool:
        """Read output; return whether more may follow at once."""
        try:
            if command.listen():
                return True
        except BlockingIOError:
            return False
        self._selector.unregister(command.out_fd)
        os.close(command.out_fd)
        command.out_fd = -1
        return False

    def _reap(self, wake_fd: Optional[int]) -> None:
        if wake_fd is not None:
            os.read(wake_fd, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            command = self._commands.pop(pid, None)
            if command is not None:
                self._finish(command, command.ended(status))

    def _enforce(self) -> None:
        now_s = time.monotonic()
        for command in list(self._commands.values()):
            if command.deadline_s > now_s:
                continue
            if command.timed_out:  # killed, but not reaped: it hangs in the kernel
                del self._commands[command.pid]
                self._finish(command, 128 + signal.SIGKILL)
                continue
            commands.kill(command, [other for other in self._commands.values() if other is not command])
            command.timed_out = True
            command.deadline_s = now_s + LATE_S

    def _finish(self, command: commands.Command, code: int) -> None:
        for _ in range(LAST_WORDS):
            if command.out_fd < 0 or not self._listen(command):
                break
        if command.in_fd >= 0:
            self._selector.unregister(command.in_fd)
            command.close_stdin()
        status = {
            "exit": None if command.timed_out else code,
            "duration_s": time.monotonic() - command.started_s,
            "cut_bytes": command.output.cut_bytes,
        }
        output = command.output.whole()
        status["cut_bytes"] = command.output.cut_bytes
        self._reply(command.request, status, output)
        command.output = commands.Bounded(0)  # background processes may keep writing, but the output is dropped


def harden() -> None:
    """Protect this process from commands of the same user, and adopt orphans."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # an image without libffi, or not Linux
        return


def keep_path(home: str, path: str) -> None:
    """Make login shells keep PATH: /etc/profile resets it, and entries from the image or a venv would be lost."""
    os.makedirs(home, exist_ok=True)
    for name in (".profile", ".bash_profile"):
        with open(os.path.join(home, name), "w") as file:
            file.write("PATH='%s'\nexport PATH\n" % path.replace("'", "'\\''"))


def main(arguments: List[str]) -> None:
    """Serve on descriptors 0 and 1, which commands do not inherit."""
    settings = json.loads(arguments[0])
    harden()
    if settings["held_fd"] is not None:  # only this process holds the lock on the folder, not its commands
        os.set_inheritable(settings["held_fd"], False)
    for link, target in settings["links"].items():
        os.symlink(target, link)
    in_fd, out_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    environment = dict(os.environ, **settings["env"])
    keep_path(environment["HOME"], environment.get("PATH", os.defpath))
    try:
        with contextlib.suppress(BrokenPipeError):
            Guest(in_fd, out_fd, settings).serve()
    finally:
        commands.kill_everything()
    if settings["remove"]:
        remove_tree(settings["remove"])
