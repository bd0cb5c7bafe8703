"""The interpreter of the python tool in the sandbox, and how it is started and killed. Never imported: see client.py.

Executed with ``sys.argv`` set to ``["", VERB, FOLDER, SOURCE]``, where SOURCE is this file: ``--start`` returns when an interpreter
answers on FOLDER's socket, ``--serve`` is that interpreter, ``--kill`` ends it and its child processes.

It uses only the standard library of Python 3.6, so that it runs on any image's Python.
"""

import array
import ast
import fcntl
import linecache
import os
import re
import signal
import socket
import struct
import sys
import time
import traceback
import types
from typing import Any, Dict, List, Optional, Tuple

RAN, RAISED = 0, 1
START_S = 20.0
# The working directory is removed from sys.path, because the repository may have a socket.py of its own.
BOOT = "import sys; del sys.path[0]; exec(compile(sys.argv[3], 'driver', 'exec'))"


def ensure(folder: str) -> None:
    """Start an interpreter if none answers, and wait until it does."""
    path = os.path.join(folder, "socket")
    deadline = time.monotonic() + START_S
    # Under a lock, so that of two concurrent first calls only one starts an interpreter.
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = False
        while not answers(path):
            if not started:
                start(folder, path)
                started = True
            if time.monotonic() > deadline:
                sys.exit("the Python interpreter did not start within %d s" % START_S)
            time.sleep(0.002)


def answers(path: str) -> bool:
    """Whether an interpreter listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


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
    # A new process, with the site packages, which the client does not load.
    os.execv(sys.executable, [sys.executable, "-c", BOOT, "--serve", folder, sys.argv[3]])


def kill(folder: str) -> None:
    """Kill the interpreter and its child processes."""
    try:
        with open(os.path.join(folder, "pid")) as file:
            os.killpg(int(file.read()), signal.SIGKILL)
    except (OSError, ValueError):
        pass  # it is gone already
    for name in ("socket", "pid"):
        try:
            os.unlink(os.path.join(folder, name))
        except OSError:
            pass  # or never existed


def serve(folder: str) -> None:
    """Run the interpreter: receive cells, run them in one namespace, and answer each with one byte."""
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
    module.__dict__.update(_shell=shell, _cd=os.chdir)  # targets of a notebook's special lines
    sys.argv = [""]
    sys.path.insert(0, "")
    number = 0
    while True:
        connection, _ = listener.accept()
        with connection:
            outputs, code = receive(connection)
            if code is None:  # the client was killed, or only checked whether an interpreter answers
                for fd in outputs:
                    os.close(fd)
                continue
            number += 1
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
                pass  # the client was killed; the next one continues with the same variables


def receive(connection: socket.socket) -> Tuple[List[int], Optional[bytes]]:
    """Return the client's standard output and error, and its code (None if the client disconnected)."""
    outputs = array.array("i")  # the C type of file descriptors in a message
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
    """Run one cell and show the value of its last expression. Exceptions are printed, as at the Python prompt."""
    source = code.decode("utf-8", "replace")
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        tree = parsed(source, name)
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
        # Leave out our own frames.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != name:
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
        return RAISED
    return RAN


def parsed(source: str, name: str) -> ast.Module:
    """Parse a cell. If it is not Python, try notebook syntax: ``!ls`` and ``%cd src`` on lines of their own, or ``%%bash`` for all."""
    try:
        return ast.parse(source, name)
    except SyntaxError as error:
        head, _, script = source.strip().partition("\n")
        if head.strip() in ("%%bash", "%%sh"):
            return ast.parse("_shell(%r)" % script, name)
        lines = re.sub(r"(?m)^([ \t]*)!(.*)$", lambda found: "%s_shell(%r)" % found.groups(), source)
        lines = re.sub(r"(?m)^([ \t]*)%cd[ \t]+(\S+)[ \t]*$", lambda found: "%s_cd(%r)" % found.groups(), lines)
        try:
            return ast.parse(lines, name)
        except SyntaxError:
            raise error from None


def shell(command: str) -> None:
    """Run a notebook's shell line; its output goes to the cell's output."""
    flush()
    program = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    code = os.spawnv(os.P_WAIT, program, [program, "-c", command])
    if code:
        print("[exit code %d]" % code)


def flush() -> None:
    """Flush the streams; the code may have closed or replaced them."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # a stream that the code replaced may raise anything


{"--start": ensure, "--serve": serve, "--kill": kill}[sys.argv[1]](sys.argv[2])
