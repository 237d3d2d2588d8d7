"""A process with torch, DeepSpeed and openba loaded, from which the workers of a local CPU head are forked.

A training of the `tiny` pipeline starts five Python processes (job supervisor, job, controller and two
workers), and four of them imported the same packages, 4.5 s of CPU each (Zen 4) on two cores. A forked
process has them already and shares their memory; 0.7 s are left, for Ray itself.

`ForkServer` starts the server; `command` is what Ray runs in place of `python` (its `py_executable`). Used
only on a head that this run has started for CPU devices: a process that has touched CUDA must not be forked,
and a cluster's nodes have their own interpreters.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from openba.json_types import JsonObject
from tasks.services import Service, die_with_parent

PRELOADED = (
    "openba.train.stage",
    "openba.train.state",
    "openba.evaluate.run",
    "tasks.job",
    "grpc",
    "pandas",
    "pyarrow.dataset",
    "requests",
    "tensorboardX",
    "torch._dynamo",
)
"""What a worker needs, and what `ray.train.torch` imports of other packages.

`torch._dynamo` is imported by the first random initial value of a model on the meta device. Ray itself is not
here: it reads the id of the job from the environment once, while `ray._raylet` is imported.
"""
_CLIENT = Path(__file__).with_name("fork_client.py")


class ForkServer:
    """The server as a child of this process; it ends with it."""

    def __init__(self, log_file: Path, environment: dict[str, str]) -> None:
        """Start the server without waiting for it; until it is ready, `command` starts new interpreters.

        Args:
            log_file: file for the server's output.
            environment: variables beside this process's, for what is read while a package is imported.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="openba-fork-"))  # a socket's path has at most 107 bytes
        self.socket = self.folder / "socket"
        self._service = Service(
            "Fork server",
            [sys.executable, "-m", "tasks.fork_server", str(self.socket)],
            log_file,
            self.socket.exists,
            {"DS_ACCELERATOR": "cpu"} | environment,
        )

    @property
    def command(self) -> str:
        """Shell command that runs its arguments as `python` would, in a forked process."""
        return shlex.join([sys.executable, "-I", "-S", str(_CLIENT), str(self.socket)])

    def wait(self) -> None:
        """Block until the server forks."""
        self._service.wait()

    def stop(self) -> None:
        """End the server and all processes forked from it."""
        self._service.stop(timeout=0)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(eq=False)
class _Connection:
    """One client: what it has sent, and the process that was forked for it."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    streams: list[int] = field(default_factory=list)
    child: int | None = None

    def request(self) -> JsonObject | None:
        """Return the whole request once all of it has come."""
        if len(self.received) < 8 or len(self.received) < 8 + int.from_bytes(self.received[:8], "big"):
            return None
        return json.loads(self.received[8:])


class _Server:
    """Forks a process for each client; single-threaded, so that a fork never catches a lock in use."""

    def __init__(self, path: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.connections: set[_Connection] = set()
        self.wakeup, wakeup_writer = socket.socketpair()
        self.wakeup.setblocking(False)
        wakeup_writer.setblocking(False)
        self._wakeup_writer = wakeup_writer
        signal.set_wakeup_fd(wakeup_writer.fileno())
        # Python writes to the wake-up descriptor only for signals that have a handler.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(64)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.wakeup, selectors.EVENT_READ)

    def serve(self) -> JsonObject:
        """Serve for ever in the server; return the request in each forked process."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj is self.wakeup:
                    self.wakeup.recv(4096)
                    self._report_ended_children()
                # One that was closed for an earlier event of this round is no longer there.
                elif key.data in self.connections and (request := self._receive(key.data)) is not None:
                    return request

    def _accept(self) -> None:
        accepted, _ = self.listener.accept()
        connection = _Connection(accepted)
        self.connections.add(connection)
        self.selector.register(accepted, selectors.EVENT_READ, connection)

    def _receive(self, connection: _Connection) -> JsonObject | None:
        """Read from a client; fork once its request is complete. Returns the request in the child only."""
        try:
            received_bytes, received_streams, _, _ = socket.recv_fds(connection.socket, 1 << 20, 3)
        except OSError:
            received_bytes = b""
            received_streams = []
        connection.streams += received_streams
        connection.received += received_bytes
        if not received_bytes:  # the client has been killed
            if connection.child is not None:
                os.kill(connection.child, signal.SIGKILL)
            self._close(connection)
            return None
        request = connection.request()
        if request is None:
            return None
        child_pid = os.fork()
        if child_pid == 0:
            self._become_child(connection)
            return request
        for stream in connection.streams:
            os.close(stream)
        connection.child = child_pid
        connection.received.clear()
        connection.socket.sendall(f"{child_pid}\n".encode())
        return None

    def _report_ended_children(self) -> None:
        """Reap every child that has ended and tell its client the exit code (minus the signal's number)."""
        connections_by_pid = {
            connection_of_child.child: connection_of_child
            for connection_of_child in self.connections
            if connection_of_child.child is not None
        }
        while True:
            try:
                child_pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if child_pid == 0:
                return
            if (connection := connections_by_pid.get(child_pid)) is not None:
                with suppress(OSError):  # the client may have ended first
                    connection.socket.sendall(f"{os.waitstatus_to_exitcode(wait_status)}\n".encode())
                connection.child = None
                self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self.selector.unregister(connection.socket)
        self.connections.remove(connection)
        connection.socket.close()

    def _become_child(self, connection: _Connection) -> None:
        """Take the client's streams and drop everything that is the server's."""
        die_with_parent()
        # Ray kills the process group of a worker that has ended; it must not be the server's.
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for target_descriptor, stream_descriptor in enumerate(connection.streams):
            os.dup2(stream_descriptor, target_descriptor)
            os.close(stream_descriptor)
        client_sockets = [server_socket.socket for server_socket in self.connections]
        for server_socket in (*client_sockets, self.listener, self.wakeup, self._wakeup_writer):
            server_socket.close()
        self.selector.close()


def _run(request: JsonObject) -> None:
    """Run the request's arguments as `python ARGUMENTS...` would."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # Every child would otherwise continue the server's sequence, and all draw the same numbers.
    random.seed()
    # The interpreter runs already, so its option -u comes too late; lines are flushed below instead.
    arguments = [argument for argument in request["arguments"] if argument != "-u"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # PYTHONPATH of the request: the server's own was read when it started.
    search_path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:0] = [folder for folder in search_path if folder not in sys.path]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def main() -> None:
    """Entry point of the server."""
    from openba.train.lean_deepspeed import import_deepspeed

    for module_name in PRELOADED:
        importlib.import_module(module_name)
    import_deepspeed("cpu")
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of the loaded packages
    _run(_Server(sys.argv[1]).serve())


if __name__ == "__main__":
    main()
