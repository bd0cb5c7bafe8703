"""The program that the python tool runs in the sandbox for each call: it passes the code to the interpreter and waits. Never imported.

``python3 -I -S -c SOURCE KEY TIMEOUT_S DRIVER``, where SOURCE is this file and DRIVER the text of agent/tools/driver.py; the code to run
is on standard input. It connects to the interpreter's socket in a folder of /tmp named after KEY, lets the driver start the
interpreter if there is none, and passes it the code and its own standard output. So everything that the code and its child
processes print goes directly to the command's output, which the sandbox limits. The exit code is 0 (ran), 1 (raised),
124 (killed after TIMEOUT_S) or 125 (the interpreter died).

It starts anew for every call, so it imports as little as possible: the driver is compiled only if it is needed, and ``_socket`` is
``socket`` without enums and selectors. It uses only the standard library of Python 3.6, so that it runs on any image's Python.
"""

import _socket
import os
import sys
import time

TIMED_OUT, DIED = 124, 125


def driver(verb: str, folder: str) -> None:
    """Let the driver start the interpreter, or kill it."""
    program = sys.argv[3]
    sys.argv = ["", verb, folder, program]
    exec(compile(program, "driver", "exec"), {"__name__": "driver"})
    sys.argv = ["", "", "", program]


def connect(path: str) -> "_socket.socket":
    """Return a connection to the interpreter. Raises OSError if none answers."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def main(key: str, timeout_s: float) -> int:
    """Pass the code on, wait, and return the exit code."""
    ends_at = time.monotonic() + timeout_s
    folder = "/tmp/python-%s-%d" % (key, os.getuid())  # noqa: S108 - private by mode, and its owner is checked
    path = folder + "/socket"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.lstat(folder).st_uid != os.getuid():
        sys.exit("%s belongs to somebody else" % folder)
    try:
        connection = connect(path)
    except OSError:
        driver("--start", folder)
        connection = connect(path)
        ends_at = time.monotonic() + timeout_s
    code = sys.stdin.buffer.read()
    outputs = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (1, 2))
    connection.sendmsg([len(code).to_bytes(8, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, outputs)])
    connection.sendall(code)
    connection.settimeout(max(ends_at - time.monotonic(), 0.001))
    try:
        answer = connection.recv(1)
    except _socket.timeout:
        driver("--kill", folder)
        return TIMED_OUT
    except OSError:
        answer = b""
    if not answer:
        driver("--kill", folder)
        return DIED
    return answer[0]


sys.exit(main(sys.argv[1], float(sys.argv[2])))
