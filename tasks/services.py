"""The embedded servers of one run: a Prefect server and a Ray head, started and stopped with it.

Owns starting, waiting for and ending processes. Each is a child that gets SIGTERM from the
kernel if this process dies, listens on loopback where it has a choice, and is ended by its own
process id. Servers named by PREFECT_API_URL or RAY_ADDRESS are used as they are and left alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from openba.errors import UserError
from openba.home import Home
from openba.recipes.runtime import PipelineRuntime

LOOPBACK = "127.0.0.1"
# Ray takes the machine's address though it is given 127.0.0.1, and its processes then listen on all
# interfaces, unless Ray is set to one machine only. gloo finds addresses by itself.
RAY_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}
NICENESS = {"RAY_worker_niceness": "0"}
"""Ray's default is 15: beside other work, workers of one group then wait minutes for each other."""
_MARK = "OPENBA_SERVICE"
"""Variable that a service and all that it starts have, with a value of its own."""
_PR_SET_PDEATHSIG = 1
_LONGEST_RAY_FOLDER = 40
_RAY_IS_STARTED = "Ray runtime started."
"""What `ray start` prints once its node is there."""
_RAY_STARTS = 3
"""On a busy machine: Ray gives its node 30 s, whatever the load."""
_claims: dict[int, int] = {}
"""Port -> descriptor of its lock, of the ports that this process has chosen."""


class Service:
    """One child process and how to tell that it is up."""

    def __init__(
        self,
        service_name: str,
        command: list[str],
        log_file: Path,
        is_ready: Callable[[], bool],
        environment: dict[str, str],
    ) -> None:
        self.name, self.log, self.ready = service_name, log_file, is_ready
        self._mark = secrets.token_hex(8)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("wb") as log_stream:
            self.process = subprocess.Popen(
                command,
                stdout=log_stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | environment | {_MARK: self._mark},
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends the child
                preexec_fn=die_with_parent,
            )

    def wait(self, timeout: float = 300.0) -> None:
        """Block until the service answers; one that loads its modules on a busy machine is given its time.

        Raises:
            UserError: it ended or did not answer in time; the message names its log.
        """
        deadline = time.monotonic() + timeout
        while not self.ready():
            if self.process.poll() is not None:
                raise UserError(
                    f"{self.name} ended while starting (exit {self.process.returncode}); see {self.log}"
                )
            if time.monotonic() > deadline:
                self.stop()
                raise UserError(f"{self.name} did not answer in {timeout:.0f} s; see {self.log}")
            time.sleep(0.1)

    def stop(self, timeout: float = 10.0) -> None:
        """SIGTERM, then SIGKILL to what is left of it and of all that it has started; 0 s: at once."""
        descendants = self._family()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        for process in _still_alive(descendants, seconds=min(timeout, 2)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # A process that ignored SIGTERM is ended now; one that has ended is not affected.
        self.process.kill()
        _still_alive(descendants, seconds=5)
        self.process.wait()

    def _family(self) -> list[psutil.Process]:
        """Return all processes that it started, by their environment where a parent between has died."""
        descendants = set[psutil.Process]()
        with suppress(psutil.NoSuchProcess):
            descendants |= set(psutil.Process(self.process.pid).children(recursive=True))
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark and process.pid != self.process.pid:
                    descendants.add(process)
        return sorted(descendants, key=lambda process: process.pid)


def _still_alive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return the processes that have not ended in time. A zombie has ended; its parent reaps it."""
    deadline = time.monotonic() + seconds
    while (living := [process for process in processes if _lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return living


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class PrefectServer:
    """Prefect's API: `PREFECT_API_URL` if set, else an own server on the home's database."""

    def __init__(self, home: Home, runtime: PipelineRuntime) -> None:
        self.service: Service | None = None
        os.environ.setdefault("PREFECT_HOME", str(home.root / "prefect"))
        os.environ.setdefault(
            "PREFECT_LOGGING_LEVEL", "CRITICAL"
        )  # the console shows steps and errors itself
        os.environ.setdefault("DO_NOT_TRACK", "1")
        # A server that somebody else runs: nothing to start, and nothing to stop.
        if url := os.environ.get("PREFECT_API_URL"):
            self.url = url
            return
        port = choose_port("runtime.services.prefect_port", runtime.services.prefect_port, 4200)
        self.url = os.environ["PREFECT_API_URL"] = f"http://{LOOPBACK}:{port}/api"
        command = [
            sys.executable,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            LOOPBACK,
            "--port",
            str(port),
        ]
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
        log_file = home.root / "logs" / "prefect-server.log"
        self.service = Service(
            "Prefect server", command, log_file, lambda: answers(f"{self.url}/health"), quiet
        )

    def wait(self) -> None:
        """Block until it answers."""
        if self.service:
            self.service.wait()
        elif not answers(f"{self.url}/health"):
            raise UserError(
                f"PREFECT_API_URL={self.url} does not answer; start that server or unset the variable"
            )

    def stop(self) -> None:
        """End the own server; leave a foreign one."""
        if self.service:
            self.service.stop()
            del os.environ["PREFECT_API_URL"]


class RayHead:
    """Ray's Jobs API: the dashboard that `RAY_ADDRESS` names, else an own one-node cluster."""

    def __init__(self, home: Home, runtime: PipelineRuntime) -> None:
        self.service: Service | None = None
        self.scratch: Path | None = None
        self._is_stopped = False
        self.embedded = not os.environ.get("RAY_ADDRESS")
        if not self.embedded:
            self.dashboard = os.environ["RAY_ADDRESS"]
            return
        dashboard_port = choose_port("runtime.services.dashboard_port", runtime.services.dashboard_port, 8265)
        self.dashboard = f"http://{LOOPBACK}:{dashboard_port}"
        os.environ |= self._authentication(home)
        temp_folder = home.root / "ray"
        if not _can_hold_sockets(temp_folder):
            self.scratch = temp_folder = _short_folder()
        command = [sys.executable, "-m", "tasks.ray_start", "--head", "--block"]
        command += [
            "--dashboard-host",
            LOOPBACK,
            "--dashboard-port",
            str(dashboard_port),
            "--temp-dir",
            str(temp_folder),
        ]
        command += [
            "--num-cpus",
            str(runtime.ray.cpus),
            "--object-store-memory",
            str(runtime.ray.object_store),
        ]
        command += ["--disable-usage-stats", "--node-ip-address", LOOPBACK]
        for port_option in (
            "--port",
            "--dashboard-agent-listen-port",
            "--metrics-export-port",
        ):
            command += [port_option, str(free_port())]
        log_file = home.root / "logs" / "ray-head.log"
        environment = RAY_ON_LOOPBACK | {
            "RAY_DISABLE_MEMORY_MONITOR": "1",
            **NICENESS,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._start = lambda: Service(
            "Ray head", command, log_file, lambda: self._is_up(log_file), environment
        )
        self.service = self._start()

    def wait(self) -> None:
        """Block until it answers and its node is there; a head that ends while starting is started again.

        Raises:
            UserError: it did not start.
        """
        for attempts_left in range(_RAY_STARTS - 1, -1, -1):
            if self.service is None:
                return
            try:
                self.service.wait()
                return
            except UserError:
                if self._is_stopped or not attempts_left:
                    raise
                self.service.stop(timeout=0)
                self.service = self._start()

    def _is_up(self, log_file: Path) -> bool:
        """Whether the head takes jobs. Its API answers before its node is there, and without one it ends."""
        is_started = _RAY_IS_STARTED in log_file.read_text(encoding="utf-8", errors="replace")
        return is_started and answers(f"{self.dashboard}/api/version")

    def stop(self) -> None:
        """End the own cluster; leave a foreign one."""
        self._is_stopped = True
        if self.service:
            # Its jobs have ended and nothing of it is kept; asked, it takes 3 to 12 s.
            self.service.stop(timeout=0)
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    @staticmethod
    def _authentication(home: Home) -> dict[str, str]:
        """Return a token of this run, readable by its owner only: the Jobs API runs any command."""
        token_file = home.root / "ray-token"
        token_file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(
            os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as token_stream:
            token_stream.write(secrets.token_hex(16))
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def _can_hold_sockets(folder: Path) -> bool:
    """Whether Ray can use the folder: its Unix socket paths end at 107 bytes, of which Ray needs about 64.

    Ray splits some of its command lines at spaces and prints some paths as ASCII.
    """
    folder_text = str(folder)
    return len(folder_text) <= _LONGEST_RAY_FOLDER and folder_text.isascii() and " " not in folder_text


def _short_folder() -> Path:
    """Return an empty folder for sockets, in the usual place or, if that is unfit too, in /tmp."""
    usual_folder = Path(tempfile.mkdtemp(prefix="openba-"))
    if _can_hold_sockets(usual_folder):
        return usual_folder
    usual_folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="openba-", dir="/tmp"))


def choose_port(setting: str, wanted_port: int | None, usual_port: int) -> int:
    """Return the wanted port, or the first free one from the usual one on.

    Raises:
        UserError: the wanted port is in use.
    """
    if wanted_port is not None:
        if not _is_free(wanted_port):
            raise UserError(
                f"{setting}: port {wanted_port} is in use; set another one or leave the setting out"
            )
        return wanted_port
    ports = range(usual_port, usual_port + 50)
    return next((port for port in ports if _is_free(port) and _claim(port)), None) or free_port()


def _claim(port: int) -> bool:
    """Whether no other run of this user has chosen the port: a server binds it seconds after it is started.

    The claim is a lock that ends with this process.
    """
    if port not in _claims:
        lock_path = Path(tempfile.gettempdir()) / f"openba-port-{port}-of-{os.getuid()}"
        # /tmp is everybody's: a link that was planted there must not be followed.
        lock_descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock_descriptor)
            return False
        _claims[port] = lock_descriptor
    return True


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As a server does: connections that have ended stay in TIME_WAIT for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def answers(url: str) -> bool:
    """Whether something speaks HTTP there; a request for a token counts."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - http to a server of ours
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401  # up, and asking for its token
    except OSError:
        return False


def die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
