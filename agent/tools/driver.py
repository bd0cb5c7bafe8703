"""What the python tool runs inside the sandbox: a client, and the interpreter that it talks to. Never imported.

``python3 -c BOOT KEY TIMEOUT_S SOURCE``, where BOOT executes SOURCE, this file; the code to run is on standard input. The client connects to the interpreter's socket in a
folder of /tmp named after KEY, starting the interpreter where there is none, and hands it the code and its own standard
output. So all that the code prints, also from processes that it starts, goes straight to the command's output, bounded by
the sandbox. The client ends with 0 (ran), 1 (raised), 124 (killed after TIMEOUT_S) or 125 (the interpreter died).

Standard library of Python 3.6 only: the interpreter is whatever the image has.
"""

import array
import fcntl
import os
import signal
import socket
import struct
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

RAN, RAISED, TIMED_OUT, DIED = 0, 1, 124, 125
START_S = 20.0
BOOT = "import sys; exec(compile(sys.argv[3], 'driver', 'exec'))"


def client(key: str, timeout_s: float) -> int:
    """Hand the code over, wait, and return the exit code."""
    folder = "/tmp/python-%s-%d" % (key, os.getuid())  # noqa: S108 - private by mode, and its owner is looked at
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.lstat(folder).st_uid != os.getuid():
        sys.exit("%s belongs to somebody else" % folder)
    code = sys.stdin.buffer.read()
    connection = connect(folder)
    ends_at = time.monotonic() + timeout_s
    with connection:
        outputs = array.array("i", [1, 2])
        connection.sendmsg([struct.pack("!Q", len(code))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, outputs)])
        connection.sendall(code)
        connection.settimeout(max(ends_at - time.monotonic(), 0.001))
        try:
            answer = connection.recv(1)
        except socket.timeout:
            kill(folder)
            return TIMED_OUT
        except OSError:
            answer = b""
    if not answer:
        kill(folder)
        return DIED
    return answer[0]


def connect(folder: str) -> socket.socket:
    """Return a connection to the interpreter, which is started when none answers."""
    path = os.path.join(folder, "socket")
    deadline = time.monotonic() + START_S
    # One at a time: of two first calls only one may start an interpreter.
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = False
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(path)
            except OSError:
                connection.close()
            else:
                return connection
            if not started:
                start(folder, path)
                started = True
            if time.monotonic() > deadline:
                sys.exit("the Python interpreter did not start within %d s" % START_S)
            time.sleep(0.002)


def start(folder: str, path: str) -> None:
    """Start the interpreter in a session of its own, so that it outlives this command."""
    if os.path.exists(path):
        os.unlink(path)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.closerange(3, 256)
    # A fresh program, with the site packages that the client does without.
    os.execv(sys.executable, [sys.executable, "-c", BOOT, "--serve", folder, sys.argv[3]])


def kill(folder: str) -> None:
    """End the interpreter and what it started."""
    try:
        with open(os.path.join(folder, "pid")) as file:
            os.killpg(int(file.read()), signal.SIGKILL)
    except (OSError, ValueError):
        pass  # it is gone already
    for name in ("socket", "pid"):
        try:
            os.unlink(os.path.join(folder, name))
        except OSError:
            pass  # or was never there


def serve(folder: str) -> None:
    """Be the interpreter: take code after code, run it in one namespace, answer with one byte each."""
    import types

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = os.path.join(folder, "socket")
    listener.bind(path + ".new")
    listener.listen(4)
    with open(os.path.join(folder, "pid"), "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    listener.set_inheritable(False)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [""]
    sys.path[0] = ""
    for number in range(1, sys.maxsize):
        connection, _ = listener.accept()
        with connection:
            outputs, code = receive(connection)
            if code is None:
                continue
            for target, fd in enumerate(outputs, 1):
                os.dup2(fd, target)
                os.close(fd)
            status = execute(code, "<cell %d>" % number, module.__dict__)
            flush()
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            os.close(nothing)
            try:
                connection.sendall(bytes([status]))
            except OSError:
                pass  # the client was killed; the next one goes on with the same variables


def receive(connection: socket.socket) -> Tuple[List[int], Optional[bytes]]:
    """Return the client's standard output and error, and its code; None for the code when it went away."""
    outputs = array.array("i")  # what a file descriptor is in a message
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_LEN(2 * outputs.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            outputs.frombytes(data[: len(data) - len(data) % outputs.itemsize])
    if len(head) < 8:
        return list(outputs), None
    (left,) = struct.unpack("!Q", head)
    pieces = []
    while left:
        piece = connection.recv(min(left, 1 << 16))
        if not piece:
            return list(outputs), None
        pieces.append(piece)
        left -= len(piece)
    return list(outputs), b"".join(pieces)


def execute(code: bytes, name: str, namespace: Dict[str, Any]) -> int:
    """Run one cell; the value of its last expression is shown. Whatever it raises is printed, as at the prompt."""
    import ast  # the client starts for every call, and does without these
    import linecache
    import traceback

    source = code.decode("utf-8", "replace")
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        tree = ast.parse(source, name)
        last = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
        exec(compile(tree, name, "exec"), namespace)
        if last:
            exec(compile(ast.Interactive(last), name, "single"), namespace)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            print("SystemExit: %s" % (stop.code,), file=sys.stderr)
            return RAISED
    except BaseException as error:  # noqa: BLE001 - it is the model's code: whatever it raises is its result
        flush()
        # Without our own frames, which would only be noise.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != name:
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
        return RAISED
    return RAN


def flush() -> None:
    """Write out what is buffered; the code may have closed or replaced its streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # its own streams are the code's own business


if sys.argv[1] == "--serve":
    serve(sys.argv[2])
else:
    sys.exit(client(sys.argv[1], float(sys.argv[2])))
