"""Steps that need no cluster run in processes of this machine, as many at once as it has cores.

Owns the pool. Threads would not do: Python's own parser is not safe in them (CPython 3.11: "AST
constructor recursion depth mismatch", met here), and data preparation holds the interpreter lock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from openba.artifacts import Build, Kind, Step
from openba.errors import UserError, error_boundary
from tasks.places import Work
from tasks.services import die_with_parent

POLL_SECONDS = 0.5


class LocalPool:
    """Worker processes that end with this one."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=os.cpu_count(),
            # Not forked: a fork copies locks that other threads of the flow hold, and nobody releases them.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
        )

    def run(self, step: Step, build: Build, watch: Callable[[], None]) -> Work:
        """Run the step's function in a worker; call `watch` while it runs.

        Raises:
            UserError: the worker was killed, as the kernel does when memory runs out.
        """
        try:
            future = self._pool.submit(_call, step.kind.function, build)
            while not wait([future], POLL_SECONDS).done:
                watch()
            return future.result()
        except (BrokenProcessPool, CancelledError):
            raise UserError(
                f"{step.name}: its process was killed (out of memory?); free some and run again"
            ) from None

    def stop(self) -> None:
        """End the workers now; what they were writing is not published."""
        # A private attribute: the pool's own shutdown waits for tasks that are running.
        workers = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
            worker.join()


@error_boundary()
def _call(function_reference: str, build: Build) -> Work:
    began_at = time.time()
    clock_start = time.monotonic()
    facts = Kind(function_reference, "").load()(build)
    return Work(facts, began_at, began_at, began_at + time.monotonic() - clock_start)


def _start_worker() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent decides
