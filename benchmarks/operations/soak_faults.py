"""Faults of a soak: processes killed or stopped, damaged files, full disks, clock jumps, servers away.

Owns the faults and where they strike. Each is drawn by the campaign's seeded generator; where a kind has no
target, as without a running worker, another kind is drawn.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_SECONDS_AWAY = 10.0
_CLOCK = """
import os, time
_real, _file = time.time, os.path.join(os.path.dirname(__file__), "offset")
def _shifted():
    try:
        with open(_file) as file:
            return _real() + float(file.read())
    except (OSError, ValueError):
        return _real()
time.time = _shifted
"""
"""A `sitecustomize` under which `time.time` is moved by what the file `offset` says."""


@dataclass(frozen=True)
class Fault:
    """One fault: what was done, and to which process or file."""

    kind: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.target}"


class Processes:
    """The process tree of one run."""

    def __init__(self, root: int) -> None:
        self.root = root

    def find(self, *words: str) -> list[psutil.Process]:
        """Return the processes of the tree whose command line has one of the words, in order of their ids."""
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = psutil.Process(self.root).children(recursive=True)
            return sorted((p for p in tree if any(w in _command(p) for w in words)), key=lambda p: p.pid)
        return []


class Disks:
    """A home and a store on disks of their own, which can be filled or made read-only, and a clock."""

    def __init__(self, home: Path, store: Path) -> None:
        self.home, self.store = home, store
        self.clock = home.parent / "clock"
        self.clock.mkdir()
        (self.clock / "sitecustomize.py").write_text(_CLOCK)
        self.mounted = [folder for folder in (home, store) if _mount(folder)]
        """Empty without the right to mount: faults of disks are then left out."""

    def fill(self, folder: Path) -> None:
        """Leave no room, for a while."""
        ballast = folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(2**20))
                file.flush()
        time.sleep(_SECONDS_AWAY)
        ballast.unlink()

    def close_for_writing(self, folder: Path) -> bool:
        """Remount read-only, for a while; False if files are open for writing there."""
        if subprocess.run(["mount", "-o", "remount,ro", folder], capture_output=True).returncode:
            return False
        time.sleep(_SECONDS_AWAY)
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        return True

    def jump(self, seconds: float) -> None:
        """Move the wall clock of all Python processes of the run."""
        partial = self.clock / "offset.tmp"
        partial.write_text(str(seconds))
        partial.replace(self.clock / "offset")

    def close(self) -> None:
        """Keep what is on the disks where it was, and unmount them."""
        for folder in self.mounted:
            copy = folder.with_name(f"{folder.name}-kept")
            subprocess.run(["cp", "-a", folder, copy], check=True)
            subprocess.run(["umount", "-l", folder], check=True)
            folder.rmdir()
            copy.rename(folder)
        self.mounted = []


class Faults:
    """The faults that can strike one run."""

    def __init__(
        self, draw: random.Random, home: Path, store: Path, disks: Disks, processes: Processes, mlflow: Any
    ) -> None:
        self.draw, self.home, self.store, self.disks = draw, home, store, disks
        self.processes, self.mlflow = processes, mlflow
        self._kinds: dict[str, Callable[[], str]] = {
            "kill worker": lambda: self._kill("RayTrainWorker"),
            "kill controller": lambda: self._kill("TrainController"),
            "kill job": lambda: self._kill("tasks.job"),
            "kill raylet": lambda: self._kill("raylet/raylet"),
            "kill GCS": lambda: self._kill("gcs_server"),
            "kill flow": self._kill_flow,
            "stop rank": self._stop_rank,
            "damage checkpoint": lambda: self._damage(self.home, "work/*/*/checkpoints/step-*/*"),
            "damage log": lambda: self._damage(self.home, "work/*/*/*.jsonl"),
            "damage work": lambda: self._damage(self.home, "work/*/*/**/*"),
            "damage store, kill flow": self._damage_store,
            "MLflow away": self._mlflow_away,
            "Prefect away": self._prefect_away,
            "clock": self._jump,
        }
        if disks.mounted:
            self._kinds["full disk"] = lambda: self._fill()
            self._kinds["read-only store"] = lambda: self._read_only()

    def strike(self) -> Fault:
        """One fault, after which the run may go on or end."""
        for kind in self.draw.sample(sorted(self._kinds), len(self._kinds)):
            if target := self._kinds[kind]():
                return Fault(kind, target)
        return Fault("nothing", "no target")

    def _kill(self, word: str) -> str:
        if not (targets := self.processes.find(word)):
            return ""
        victim = self.draw.choice(targets)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        return f"{word} {victim.pid}"

    def _kill_flow(self) -> str:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self.processes.root).kill()
        return str(self.processes.root)

    def _stop_rank(self) -> str:
        if not (workers := self.processes.find("RayTrainWorker")):
            return ""
        victim = self.draw.choice(workers)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGSTOP)
        return str(victim.pid)

    def _damage(self, root: Path, pattern: str) -> str:
        """Cut, flip, NUL-tail or remove a file that nobody has open for writing or has just written."""
        now = time.time()
        files = sorted(
            path
            for path in root.glob(pattern)
            if path.is_file()
            and ".tmp" not in str(path)
            and now - path.stat().st_mtime > 1
            and path.stat().st_size
        )
        files = [path for path in files if not path.name.startswith("rank-") or path.suffix == ".safetensors"]
        return damage(self.draw, self.draw.choice(files)) if files else ""

    def _damage_store(self) -> str:
        """Damage a file between two runs: a training reads the digests of its inputs when it begins."""
        target = self._damage(self.store, "[!.]*/*/**/*")
        if target:
            self._kill_flow()
        return target

    def _mlflow_away(self) -> str:
        return _away(psutil.Process(self.mlflow.process.pid))

    def _prefect_away(self) -> str:
        servers = self.processes.find("prefect server", "prefect.server")
        return _away(servers[0]) if servers else ""

    def _jump(self) -> str:
        seconds = self.draw.choice([-86_400.0, -600.0, 0.0, 3600.0, 86_400.0])
        self.disks.jump(seconds)
        return f"{seconds:+.0f} s"

    def _fill(self) -> str:
        folder = self.draw.choice(self.disks.mounted)
        self.disks.fill(folder)
        return folder.name

    def _read_only(self) -> str:
        return "store" if self.disks.close_for_writing(self.store) else ""


def damage(draw: random.Random, path: Path) -> str:
    """Damage one file in one of four ways; the way and the file."""
    content = bytearray(path.read_bytes())
    way = draw.choice(("cut", "flipped", "NUL-tailed", "removed"))
    if way == "removed":
        path.unlink()
    elif way == "cut":
        os.truncate(path, draw.randrange(len(content)))
    elif way == "NUL-tailed":
        with path.open("ab") as file:
            file.write(bytes(512))
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        with path.open("r+b") as file:
            file.write(content)
    return f"{way} {path}"


def _away(process: psutil.Process) -> str:
    """Let a server and its workers answer nothing for a while."""
    family = [process, *process.children(recursive=True)]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.suspend()
    time.sleep(_SECONDS_AWAY)
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.resume()
    return str(process.pid)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def remove(root: Path) -> None:
    """Delete the folder of a campaign, also one that was killed and left its disks mounted."""
    for folder in (root / "home", root / "store"):
        if folder.is_mount():
            subprocess.run(["umount", "-l", folder], check=True)
    shutil.rmtree(root, ignore_errors=True)


def _mount(folder: Path) -> bool:
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0
