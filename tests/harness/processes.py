"""Run a command and watch its process tree: seconds, peak memory, and a hook while it runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.harness import ROOT


@dataclass(frozen=True)
class Ran:
    """What a command took."""

    seconds: float
    peak_bytes: int
    """Largest sum of proportional set sizes over the tree, sampled once a second."""
    strays: list[str]
    """Processes of the tree that were still there when the command had ended."""


def run(
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    watch: Callable[[list[psutil.Process]], None] | None = None,
) -> Ran:
    """Run to the end; a failure raises with the log's name."""
    started, peak = time.monotonic(), 0
    seen: dict[int, psutil.Process] = {}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | dict(environment), stdout=file, stderr=subprocess.STDOUT
        )
        root = psutil.Process(process.pid)
        while process.poll() is None:
            tree = _tree(root)
            seen |= {p.pid: p for p in tree}
            peak = max(peak, sum(_memory(tree)))
            if watch is not None:
                watch(tree)
            time.sleep(1)
    seconds = time.monotonic() - started
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return Ran(seconds, peak, [str(p.pid) for p in seen.values() if _alive(p)])


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(tree: list[psutil.Process]) -> Iterator[int]:
    for process in tree:
        try:
            yield process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
