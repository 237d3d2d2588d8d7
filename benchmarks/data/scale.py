"""Cleaning of large corpora: peak memory for 0.5 and for 4 GB of text, and two processes against one.

Both pools are started alike. Beside their ratio stands that of two processes that only count: two cores that
others use as well do not give twice the speed. Memory: anonymous bytes of the step's process and its workers
together, sampled every tenth of a second. Pages of mapped files do not count: the kernel drops them whenever
it needs the memory. The text is that of `benchmarks.corpora` in copies that differ in every sentence.
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
from openba.recipes.clean import CleanRecipe

_GB = 10**9
_MIB = 2**20
_SMALL_CORPUS = _GB // 2
_LARGE_CORPUS = 4 * _GB
_TIMED_CORPUS = _GB
_COUNT_LIMIT = 100_000_000
_SAMPLE_SECONDS = 0.1


def figures() -> Iterator[Figure]:
    """Yield the growth of the peak from 0.5 to 4 GB, and wall time of one process over that of two.

    Raises:
        UserError: other processes use the cores, so that times would say nothing.
    """
    yield memory(_SMALL_CORPUS, _LARGE_CORPUS, cleaning.paper())
    require_quiet()
    yield counting()
    yield processes(_TIMED_CORPUS)


def memory(small: int, large: int, recipe: CleanRecipe) -> Figure:
    """Peak memory of the larger corpus over that of the smaller, with the default of a process per core.

    Args:
        small: bytes of text.
        large: bytes of text.
        recipe: the filters.
    """
    measurements = []
    for corpus_bytes in (small, large):
        with tempfile.TemporaryDirectory(prefix="openba-scale-") as folder:
            written_bytes = corpora.write(Path(folder) / "text" / DOCUMENTS, corpora.prose(), corpus_bytes)
            # In a fresh process each: freed memory of the first run would hide a part of the second's peak.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                measurements.append(
                    (written_bytes, *pool.submit(_peak_and_seconds, Path(folder), recipe).result())
                )
    peer = "; ".join(
        f"{written_bytes / _GB:.2f} GB: {peak_bytes / _MIB:.0f} MiB, {seconds:.0f} s"
        for written_bytes, peak_bytes, seconds in measurements
    )
    growth = measurements[1][1] / measurements[0][1]
    name = "data/modern_memory_growth" if recipe.near_dedup else "data/cleaning_memory_growth"
    return Figure(name, growth, "x", 1.3, "lower", peer, growth)


def _peak_and_seconds(folder: Path, recipe: CleanRecipe) -> tuple[int, float]:
    """Return peak anonymous bytes and wall seconds of one cleaning."""
    samples: list[int] = []
    is_done = threading.Event()
    sampler = threading.Thread(target=_sample_memory, args=(samples, is_done))
    sampler.start()
    started = time.perf_counter()
    cleaning.clean(folder / "text", recipe, folder / "out", None)
    is_done.set()
    sampler.join()
    return max(samples, default=0), time.perf_counter() - started


def _sample_memory(samples: list[int], is_done: threading.Event) -> None:
    current_process = psutil.Process()
    while not is_done.wait(_SAMPLE_SECONDS):
        process_tree = [current_process, *current_process.children(recursive=True)]
        samples.append(sum(map(_anonymous_bytes, process_tree)))


def _anonymous_bytes(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, _, after_label = status.partition("RssAnon:")
    return int(after_label.split()[0]) * 1024 if after_label else 0


def counting() -> Figure:
    """Wall time of two counting loops in sequence over that of both at once, in started processes."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_count_to, [1000] * 8))  # starts both processes
        started = time.perf_counter()
        for _ in range(2):
            pool.submit(_count_to, _COUNT_LIMIT).result()
        sequential_seconds = time.perf_counter() - started
        started = time.perf_counter()
        list(pool.map(_count_to, [_COUNT_LIMIT] * 2))
        ratio = sequential_seconds / (time.perf_counter() - started)
    peer = f"{sequential_seconds / 2:.1f} s each"
    return Figure("data/two_processes_that_count", ratio, "x", None, "higher", peer, ratio)


def _count_to(limit: int) -> int:
    number = 0
    while number < limit:
        number += 1
    return number


def processes(corpus_bytes: int) -> Figure:
    """Wall time of the step in a pool of one process over that in one of two, start included."""
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="openba-scale-") as folder:
        root = Path(folder)
        corpora.write(root / "text" / DOCUMENTS, corpora.prose(), corpus_bytes)
        for process_count in (1, 2):
            started = time.perf_counter()
            with passes.Processes(process_count) as pool:
                cleaning.clean(root / "text", cleaning.paper(), root / str(process_count), pool)
            seconds[process_count] = time.perf_counter() - started
    ratio = seconds[1] / seconds[2]
    peer = f"one process: {seconds[1]:.1f} s; two: {seconds[2]:.1f} s, of {corpus_bytes / _GB:g} GB"
    return Figure("data/cleaning_two_processes", ratio, "x", 1.8, "higher", peer, ratio)
