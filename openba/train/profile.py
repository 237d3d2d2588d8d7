"""Profile of three steps, on request: operations over time, and allocations.

Owns the files of `profile/`: for each worker a trace for chrome://tracing or Perfetto, with every allocation,
and on a GPU torch's memory snapshot for pytorch.org/memory_viz. A step that is profiled is slower and leads
to the same state.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

FOLDER = "profile"
STEPS = 3


class Profile:
    """The profiler of one worker."""

    def __init__(self, folder: Path, rank: int, after: int | None) -> None:
        """Take the step after which profiling begins; None: nothing is profiled."""
        self.folder = folder / FOLDER
        self.rank = rank
        self.after = after
        self._running: profile | None = None
        self._on_gpu = torch.cuda.is_available()

    def done(self, step: int) -> None:
        """Begin or end the profile after step `step`."""
        if self._running is not None and self.after is not None and step >= self.after + STEPS:
            self.end()
        elif step == self.after:
            self._begin()

    def end(self) -> None:
        """Write the profile, also of a run that ends before its three steps are over."""
        running = self._running
        self._running = None
        if running is None:
            return
        # Forgotten before it is written: a disk that refuses the trace must not keep the profiler running.
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(str(self.folder / f"trace-{self.rank:05d}.json.gz"))
        if self._on_gpu:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory-{self.rank:05d}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)

    def _begin(self) -> None:
        if self._on_gpu:
            torch.cuda.memory._record_memory_history()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._running = profile(activities=activities, profile_memory=True)
        self._running.start()
