"""Interleaved timing of cases that do the same work, on an otherwise idle machine.

Owns the measurement of ratios: every case is warmed up, then ABAB..., medians of wall time; and the refusal
to measure while other processes use the cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import psutil

from openba.errors import UserError

MAX_BUSY_PERCENT = 15.0
"""Load of all cores together by other processes before a measurement."""


def require_quiet(timeout_seconds: float = 120.0) -> None:
    """Wait for the machine to be idle.

    Raises:
        UserError: it is still busy after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while (busy_percent := psutil.cpu_percent(interval=3.0)) > MAX_BUSY_PERCENT:
        if time.monotonic() > deadline:
            raise UserError(
                f"benchmarks: other processes use {busy_percent:.0f} % of the cores; stop them and run again"
            )


def medians(
    cases: Mapping[str, Callable[[], object]], rounds: int, warm_up_rounds: int = 1
) -> dict[str, float]:
    """Return the median seconds of each case."""
    for run_case in cases.values():
        for _ in range(warm_up_rounds):
            run_case()
    require_quiet()
    case_seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run_case in cases.items():
            started = time.perf_counter()
            run_case()
            case_seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in case_seconds.items()}
