"""Cleaning at size: the peak memory for 0.5 and for 4 GB of text, and two processes against one.

Both pools are started alike; beside them stands what two processes give that only count: cores that others
use, too, are not twice one. Memory: anonymous bytes of the step's process and its workers together, sampled
every tenth of a second. Pages of mapped files are left out: the kernel drops them whenever it needs the room.
The text is that of `benchmarks.corpora` in copies that differ in every sentence.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

from benchmarks import corpora
from benchmarks.data import cleaning
from benchmarks.figure import Figure
from benchmarks.timing import require_quiet
from openba.data.clean import passes
from openba.data.schema import DOCUMENTS

_GB, _MIB = 10**9, 2**20
_SMALL, _LARGE = _GB // 2, 4 * _GB
_SPEED = _GB
_COUNT = 100_000_000


def figures() -> Iterator[Figure]:
    """Growth of the peak from 0.5 to 4 GB; wall time of one process over that of two.

    Raises:
        UserError: other processes use the cores, so that the times would say nothing.
    """
    yield memory(_SMALL, _LARGE)
    require_quiet()
    yield counting()
    yield processes(_SPEED)


def memory(small: int, large: int) -> Figure:
    """Peak of the larger over that of the smaller, as the step runs by default: a process per core."""
    found = []
    for size in (small, large):
        with tempfile.TemporaryDirectory(prefix="openba-scale-") as folder:
            written = corpora.write(Path(folder) / "text" / DOCUMENTS, corpora.prose(), size)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found.append((written, *pool.submit(_peak, Path(folder)).result()))
    told = "; ".join(
        f"{written / _GB:.2f} GB: {peak / _MIB:.0f} MiB, {seconds:.0f} s" for written, peak, seconds in found
    )
    growth = found[1][1] / found[0][1]
    return Figure("data/cleaning_memory_growth", growth, "x", 1.3, "lower", told, growth)


def _peak(folder: Path) -> tuple[int, float]:
    peak, done = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, done))
    watcher.start()
    started = time.perf_counter()
    cleaning.clean(folder / "text", cleaning.paper(), folder / "out", None)
    done.set()
    watcher.join()
    return peak[0], time.perf_counter() - started


def _watch(peak: list[int], done: threading.Event) -> None:
    me = psutil.Process()
    while not done.wait(0.1):
        alive = [me, *me.children(recursive=True)]
        peak[0] = max(peak[0], sum(map(_anonymous, alive)))


def _anonymous(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, _, rest = status.partition("RssAnon:")
    return int(rest.split()[0]) * 1024 if rest else 0


def counting() -> Figure:
    """Wall time of two loops one after the other over that of both at once, in processes that stand ready."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_count, [1000] * 8))  # both are there
        started = time.perf_counter()
        for _ in range(2):
            pool.submit(_count, _COUNT).result()
        one_by_one = time.perf_counter() - started
        started = time.perf_counter()
        list(pool.map(_count, [_COUNT] * 2))
        ratio = one_by_one / (time.perf_counter() - started)
    return Figure(
        "data/two_processes_that_count", ratio, "x", None, "higher", f"{one_by_one / 2:.1f} s each", ratio
    )


def _count(limit: int) -> int:
    number = 0
    while number < limit:
        number += 1
    return number


def processes(size: int) -> Figure:
    """Wall time of the step in a pool of one process and in one of two, start included."""
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="openba-scale-") as folder:
        root = Path(folder)
        corpora.write(root / "text" / DOCUMENTS, corpora.prose(), size)
        for number in (1, 2):
            started = time.perf_counter()
            with passes.Processes(number) as pool:
                cleaning.clean(root / "text", cleaning.paper(), root / str(number), pool)
            seconds[number] = time.perf_counter() - started
    ratio = seconds[1] / seconds[2]
    told = f"one process: {seconds[1]:.1f} s; two: {seconds[2]:.1f} s, of {size / _GB:g} GB"
    return Figure("data/cleaning_two_processes", ratio, "x", 1.8, "higher", told, ratio)
