"""The wish to stop: a signal to any worker, or a file beside the output. The stage saves, then ends.

Owns how the wish comes in. The first SIGTERM or SIGINT is a wish; the second ends the process at once.
Ray runs a worker's function in a thread, where no signal arrives: there the file is the way.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

REQUEST = "stop"
"""Name of the file in a stage's folder that asks it to stop."""
EXIT_PREEMPTED = 75
"""Exit code of a worker and of a job that stopped when asked to, with its state saved (EX_TEMPFAIL)."""


class Preempted(Exception):
    """The stage saved its state and stopped, as it was asked to. Run it again to go on."""


class StopRequest:
    """Whether this worker was asked to stop."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / REQUEST
        self.signalled = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._signal)

    def made(self, rank: int) -> bool:
        """By a signal to this worker, or, seen by rank 0 only, by the file."""
        return self.signalled or (rank == 0 and self.file.exists())

    def close(self) -> None:
        """Signals are others' again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            os._exit(128 + number)
        self.signalled = True
