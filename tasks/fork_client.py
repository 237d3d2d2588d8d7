"""Run a Python command in a process forked from a fork server; use like `python`: CLIENT SOCKET ARGUMENTS...

Stands in for the Python interpreter, so it is started as `python -I -S fork_client.py` and imports little:
it is ready in about 20 ms. The forked process gets this one's standard streams, environment and working
directory; signals are passed on to it; its exit code becomes this process's exit code. Without a server at
SOCKET the command runs in a new interpreter, as if this file were not there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any


def main() -> None:
    """Entry point."""
    socket_path = sys.argv[1]
    arguments = sys.argv[2:]
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    request_bytes = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(socket_path)
        except OSError:
            os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - no shell is wanted
        length_header = len(request_bytes).to_bytes(8, "big")
        # Together with the first bytes, so that the server has the streams before it reads the request.
        socket.send_fds(connection, [length_header], [0, 1, 2])
        connection.sendall(request_bytes)
        reply_stream = connection.makefile("r")
        child_pid = int(reply_stream.readline())
        _pass_signals_on(child_pid)
        # No line: the server was killed, and its children with it.
        status = int(reply_stream.readline() or -signal.SIGKILL)
    if status < 0:  # ended by a signal: end in the same way
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _pass_signals_on(child_pid: int) -> None:
    def send(signal_number: int, frame: Any) -> None:
        os.kill(child_pid, signal_number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, send)


if __name__ == "__main__":
    main()
