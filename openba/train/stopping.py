"""Requests to stop: a signal to any worker, or a file beside the output. The training saves, then ends.

The first SIGTERM or SIGINT is a request; the second ends the process at once. Ray runs a worker's function in
a thread, which no signal reaches: there the file is used.
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
    """The training saved its state and stopped on request; run it again to go on."""


class StopRequest:
    """Requests to this worker to stop."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / REQUEST
        self.signalled = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._signal)

    def made(self, rank: int) -> bool:
        """Return whether a signal came to this worker, or, seen by rank 0 only, the file is there."""
        return self.signalled or (rank == 0 and self.file.exists())

    def close(self) -> None:
        """Restore the signal handlers."""
        for signal_number, handler in self._before.items():
            signal.signal(signal_number, handler)

    def _signal(self, signal_number: int, frame: FrameType | None) -> None:
        # The second signal: whoever sends it does not want to wait for a save.
        if self.signalled:
            os._exit(128 + signal_number)
        self.signalled = True
