"""A look into three steps, on request: what ran when, and what held memory.

Owns the files of `profile/`: for each worker a trace for chrome://tracing or Perfetto, with every allocation,
and on a GPU torch's memory snapshot for pytorch.org/memory_viz. A step that is looked at is slower and leaves
the same state.
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
        """`after`: the step before the first that is looked at; None: no step is."""
        self.folder, self.rank, self.after = folder / FOLDER, rank, after
        self._running: profile | None = None
        self._on_gpu = torch.cuda.is_available()

    def done(self, step: int) -> None:
        """Step `step` is done; begins and ends the look."""
        if self._running is not None and self.after is not None and step >= self.after + STEPS:
            self.end()
        elif step == self.after:
            self._begin()

    def end(self) -> None:
        """Write what was seen; also of a run that ends before its three steps are over."""
        running, self._running = self._running, None
        if running is None:
            return
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
