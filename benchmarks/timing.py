"""Times of cases that do the same work, interleaved, on a machine that is left alone.

Owns how a ratio is measured: every case warmed up, then ABAB..., medians of wall time; and the refusal to
measure when other processes use the cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import psutil

from openba.errors import UserError

BUSY_PERCENT = 15.0
"""Of all cores together, by other processes, before a measurement."""


def require_quiet(patience: float = 120.0) -> None:
    """Wait for the machine to be idle.

    Raises:
        UserError: it is still busy after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while (used := psutil.cpu_percent(interval=3.0)) > BUSY_PERCENT:
        if time.monotonic() > deadline:
            raise UserError(
                f"benchmarks: other processes use {used:.0f} % of the cores; stop them and run again"
            )


def medians(cases: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, float]:
    """Median seconds of each case."""
    for case in cases.values():
        for _ in range(warm):
            case()
    require_quiet()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            begin = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}
