"""Machines on this machine, each with its own network, processes, name and shared memory; the disk is shared.

Owns namespaces of Linux, made by root with `unshare`; nothing of the machine's own network is touched.
All of them end with this process, however it ends: the kernel kills their first processes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

NETWORK = "10.77.0."
_PR_SET_PDEATHSIG = 1
# In the machine's own view of the files; where there is no such folder, all of /sys/class is hidden.
_POWERCAP = (
    "{ [ -d /sys/class/powercap ] || { mount -t tmpfs tmpfs /sys/class && mkdir /sys/class/powercap; }; }"
)


def missing() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if lacks := [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]:
        return f"{', '.join(lacks)} not installed (iproute2, util-linux)"
    made = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "probe", "type", "bridge"], capture_output=True, text=True
    )
    return made.stderr.strip()


class Network:
    """A bridge in a namespace of its own, whose address users of the machines have."""

    def __init__(self, folder: Path) -> None:
        """Args: where machines leave their logs; short, since Ray's sockets may lie below it."""
        self.folder, self.machines = folder, {}  # type: Path, dict[int, Machine]
        self._hub = _Space(["--net"], folder / "hub.log")

    def __enter__(self) -> Network:
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "hub", "type", "bridge")
        self.ip("address", "add", f"{NETWORK}254/24", "dev", "hub")
        self.ip("link", "set", "hub", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self.machines.values():
            machine.end()
        self._hub.end()

    def machine(self, number: int) -> Machine:
        """A new machine with the address 10.77.0.NUMBER, also in place of one that has ended."""
        machine = self.machines[number] = Machine(self, number)
        return machine

    def start(self, command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """A program of a user: it sees the disk and processes of this machine and the network of the hub."""
        return _start([*self._hub.enter("--net"), *command], environment, log)

    def ip(self, *arguments: str) -> None:
        """`ip` in the hub."""
        _run([*self._hub.enter("--net"), "ip", *arguments])


class Machine:
    """Own address, process ids, host name, /dev/shm and energy counter."""

    def __init__(self, network: Network, number: int) -> None:
        self.network, self.name, self.address = network, f"node{number}", f"{NETWORK}{number}"
        self.folder = network.folder / self.name
        self.folder.mkdir(exist_ok=True)
        hosts = self.folder / "hosts"  # as Debian writes it: the own name leads to loopback
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        counter = self.folder / "powercap" / "intel-rapl:0"
        counter.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("name", "package-0"),
            ("energy_uj", "0"),
            ("max_energy_range_uj", "262143328850"),
        ):
            (counter / name).write_text(text)
        self._energy = counter / "energy_uj"
        setup = (
            f"{_POWERCAP} && mount --bind {counter.parent} /sys/class/powercap && "
            f"hostname {self.name} && mount --bind {hosts} /etc/hosts && mount -t tmpfs tmpfs /dev/shm && "
            "ip link set lo up && echo up && exec sleep infinity"
        )
        kinds = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"]
        self._space = _Space(kinds, self.folder / "machine.log", setup)
        self._cable = f"to-{self.name}"
        peer = ["peer", "name", "eth0", "netns", self._space.init]
        network.ip("link", "add", self._cable, "type", "veth", *peer)
        network.ip("link", "set", self._cable, "master", "hub", "up")
        self._ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self._ip("link", "set", "eth0", "up")

    def start(self, command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """A program on this machine."""
        return _start([*self._space.enter("--net", "--mount", "--uts", "--pid"), *command], environment, log)

    def unplug(self) -> None:
        """Nothing comes through any more; programs go on."""
        self.network.ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        """As before."""
        self.network.ip("link", "set", self._cable, "up")

    def use(self, joules: float) -> None:
        """Let the counter of this machine's one processor rise, which is read as RAPL's is."""
        self._energy.write_text(str(int(self._energy.read_text()) + round(joules * 1e6)))

    def runs(self, program: str) -> bool:
        """Whether a program with this in its name or arguments is among those of this machine."""
        own = os.readlink(f"/proc/{self._space.init}/ns/net")
        for process in psutil.process_iter(["pid", "cmdline"]):
            if program in " ".join(process.info["cmdline"] or ()):
                with suppress(OSError):  # it may have ended
                    if os.readlink(f"/proc/{process.info['pid']}/ns/net") == own:
                        return True
        return False

    def end(self) -> None:
        """Kill -9 of everything that runs here, at once."""
        self._space.end()

    def _ip(self, *arguments: str) -> None:
        _run([*self._space.enter("--net"), "ip", *arguments])


class _Space:
    """Namespaces and their first process, which ends with this one."""

    def __init__(self, kinds: list[str], log: Path, setup: str = "echo up && exec sleep infinity") -> None:
        kill = ["--kill-child=KILL"] if "--fork" in kinds else []
        with log.open("ab") as told:
            self._process = subprocess.Popen(
                ["unshare", *kinds, *kill, "sh", "-c", setup], stdout=subprocess.PIPE, stderr=told,
                stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"up\n":
            raise OSError(f"unshare {' '.join(kinds)}: {log.read_text().strip()}")
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.init = children[0] if "--fork" in kinds else str(pid)

    def enter(self, *kinds: str) -> list[str]:
        """The start of a command that runs inside."""
        return ["nsenter", "--target", self.init, *kinds]

    def end(self) -> None:
        """Kill the first process and so, with process ids of its own, all others."""
        if self._process.poll() is None:
            os.kill(int(self.init), signal.SIGKILL)
        self._process.wait()


def wait_for(there: Callable[[], bool], seconds: float, what: str) -> None:
    """Look until it is so.

    Raises:
        TimeoutError: it was not, for so long.
    """
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not in {seconds:.0f} s")
        time.sleep(0.1)


def _start(command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env=dict(environment), stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
