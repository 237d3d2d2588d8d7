"""Micro-batches of the next steps, made in the background while the device computes.

Owns the thread and its queue. Which samples a step sees is `batches.py`'s, a function of seed and step: what
was made ahead when a training ends or rolls back is dropped, and nothing of it has to be saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from queue import Empty, Full, Queue
from threading import Event, Thread

from openba.train.batches import Batch, TrainingBatches
from openba.train.engine import Engine

STEPS_AHEAD = 2
"""Steps whose batches wait at most: one that is slow to make is made up for, and host memory stays small."""
_POLL_SECONDS = 0.2


class BatchLoader:
    """Makes this worker's micro-batches of consecutive data steps, in order."""

    def __init__(self, make_step: Callable[[int], list[Batch]], first_step: int, last_step: int) -> None:
        """Begin with `first_step`, end before `last_step`; `make_step` is called in a thread of its own."""
        self._made: Queue[list[Batch] | BaseException] = Queue(STEPS_AHEAD)
        self._is_closed = Event()
        self._make_step = make_step
        self._thread = Thread(target=self._run, args=(first_step, last_step), name="batches", daemon=True)
        self._thread.start()

    def take(self) -> list[Batch]:
        """Return the next step's micro-batches, when they are there.

        Raises:
            Exception: what making them raised.
        """
        while True:
            try:
                made = self._made.get(timeout=_POLL_SECONDS)
            except Empty:
                if not self._thread.is_alive() and self._made.empty():
                    raise RuntimeError("batches: the thread that makes them has ended") from None
                continue
            if isinstance(made, BaseException):
                raise made
            return made

    def close(self) -> None:
        """End the thread; a step that is being made is finished and dropped."""
        self._is_closed.set()

    def _run(self, first_step: int, last_step: int) -> None:
        for step in range(first_step, last_step):
            made: list[Batch] | BaseException
            try:
                made = self._make_step(step)
            except BaseException as error:  # handed to the training thread
                made = error
            if not self._put(made) or isinstance(made, BaseException):
                return

    def _put(self, made: list[Batch] | BaseException) -> bool:
        while not self._is_closed.is_set():
            try:
                self._made.put(made, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False


def load_ahead(batches: TrainingBatches, engine: Engine, first_step: int, last_step: int) -> BatchLoader:
    """Return a loader of this worker's micro-batches, laid out as the engine computes them."""

    def make_step(step: int) -> list[Batch]:
        made = batches.micro(step, engine.data_rank, engine.data_world, engine.micro_batch)
        return [replace(batch, flat=engine.lay_out(batch)) for batch in made]

    return BatchLoader(make_step, first_step, last_step)
