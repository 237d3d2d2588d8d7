"""Exported models of a stage: that of its end, and those of the steps whose weights are kept.

Owns what happens when the disk refuses one. The weights of a kept step move on with the next step, so they
wait in rank 0's memory and are tried again, as a failed checkpoint is; no checkpoint is saved meanwhile, so
that a group that dies goes on from before that step and makes the export again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from openba import durable
from openba.errors import UserError
from openba.model.files import weights_folder
from openba.train.checkpoint import FAILURES
from openba.train.engine import Engine


class Exports:
    """Writes the exported models of one stage; all workers call each method together."""

    def __init__(self, out: Path, engine: Engine, write: Callable[[Path, dict[str, Tensor]], None]) -> None:
        """Take the training's folder and engine, and what writes the weights of rank 0 into a folder."""
        self.out = out
        self.engine = engine
        self.write = write
        self.failures = 0
        """Exports in a row that failed; the same on all workers."""
        self.reason = ""
        """Why the last one failed."""
        self._waiting: dict[int, dict[str, Tensor]] = {}
        """Step -> its weights, which are on rank 0 only."""

    @property
    def are_waiting(self) -> bool:
        """Whether weights of a kept step have not reached the disk."""
        return bool(self._waiting)

    def keep(self, step: int) -> bool:
        """Export the weights as they are after `step`; return False if the disk refused them.

        Raises:
            UserError: too many tries in a row failed.
        """
        # Gathered by all workers, written by rank 0: only it has the full tensors.
        weights = self.engine.weights()
        refused_because = self._write(weights_folder(self.out, step), weights)
        if refused_because:
            self._waiting[step] = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
        return self._note(refused_because)

    def retry(self) -> bool:
        """Write what waits; return False if the disk still refuses it. Errors as `keep`."""
        for step in list(self._waiting):
            if refused_because := self._write(weights_folder(self.out, step), self._waiting[step]):
                return self._note(refused_because)
            del self._waiting[step]
        return self._note("")

    def forget_after(self, step: int) -> None:
        """Drop waiting weights of later steps: the training was rolled back and reaches them anew."""
        self._waiting = {number: weights for number, weights in self._waiting.items() if number <= step}

    def finish(self) -> None:
        """Export the model at the end of the training.

        Raises:
            UserError: the disk refused it, or still refuses weights that were to be kept.
        """
        refused_because = "" if self.retry() else self.reason
        refused_because = refused_because or self._write(weights_folder(self.out), self.engine.weights())
        if refused_because:
            raise UserError(
                f"{self.out}: the model could not be written ({refused_because}); free some space or mend "
                "the disk, then run again: the last checkpoint is kept"
            )

    def _note(self, refused_because: str) -> bool:
        self.failures = self.failures + 1 if refused_because else 0
        self.reason = refused_because
        if self.failures >= FAILURES:
            raise UserError(
                f"{self.out}: weights that are to be kept could not be written {FAILURES} times in a row "
                f"({refused_because}); free some space or mend the disk, then run again"
            )
        return not refused_because

    def _write(self, folder: Path, weights: dict[str, Tensor]) -> str:
        """Write a model on rank 0; return why it failed, on all ranks, or nothing."""
        reason = [""]
        if self.engine.rank == 0:
            try:
                self.write(folder, weights)
            except (OSError, SafetensorError) as error:
                if isinstance(error, SafetensorError) and durable.error_number(error) is None:
                    raise
                reason = [" ".join(str(error).split())]
                print(f"{folder}: {reason[0]}; training goes on", file=sys.stderr)
                shutil.rmtree(folder, ignore_errors=True)  # what it holds may be what fills the disk
        # All workers learn it, since they retry and give up together.
        dist.broadcast_object_list(reason)
        return reason[0]
