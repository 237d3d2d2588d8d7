"""Verdicts on optimiser steps: which are not taken, and when the weights are no longer trusted.

Owns the verdict on a step's loss, which all workers reach together, the count of bad steps in a row, the
alarm on a loss that stays up, and how far roll-backs have moved the data. It writes no file and restores
nothing: a hook writes its verdicts (`GuardHook`), the trainer rolls back.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from openba.errors import UserError
from openba.json_types import JsonObject
from openba.recipes.train import TrainRecipe

BAD_STEPS = 3
"""Bad steps, one after the other, after which the weights are no longer trusted."""
ROLL_BACKS = 3
"""Roll-backs of one run after which it stops."""
SPIKE_WINDOW = 50
"""Steps whose mean loss is compared."""
_SPIKE = 0.5
"""A spike: the mean of 50 steps is 0.5 nats above the lowest mean of 50 steps before."""
_HISTORY = 128  # steps whose losses the sigma rule uses, as in OLMo-core


@dataclass(frozen=True)
class Verdict:
    """Judgement of all workers on one step's loss, before its last gradients."""

    losses: list[float]
    """Summed loss of each worker."""
    mean: float
    """Over all target tokens of the step, in nats."""
    reason: str
    """Why the step is not taken; empty if it is."""


@dataclass(frozen=True)
class Spike:
    """A loss that stays above what it was."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Outcome:
    """End of a step: taken or skipped, and whether a spike begins."""

    skipped_because: str
    """Why it was not taken; empty if it was."""
    spike: Spike | None
    """Set at the first step of a spike."""


class Guard:
    """Verdicts of one run, and what they depend on."""

    def __init__(self, recipe: TrainRecipe, debug_folder: Path) -> None:
        """Take the run's recipe, and the folder that the last error names."""
        self.recipe = recipe
        self.debug_folder = debug_folder
        self.shift = 0
        """Steps of data that roll-backs have passed over: step `s` reads the data of step `s + shift`."""
        self.bad_steps = 0
        self.roll_backs = 0
        self._history: deque[float] = deque(maxlen=_HISTORY)
        self._lowest_mean = math.inf
        self._in_spike = False

    def judge(self, losses: list[float], targets: int) -> Verdict:
        """Return the verdict on a step before its last gradients; all workers call it and get the same.

        The limit is on the mean over the whole step, so it does not depend on workers and micro-batches.

        Args:
            losses: Summed loss of each worker.
            targets: Target tokens of the step over all workers.
        """
        mean = sum(losses) / max(1, targets)
        broken_ranks = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        # The most specific verdict comes first: a loss that is not finite is also above every limit.
        if broken_ranks:
            reason = f"loss not finite on rank {', '.join(map(str, broken_ranks))}"
        elif mean > self.recipe.skip_loss_above:
            reason = f"loss above {self.recipe.skip_loss_above:g}"
        elif self._is_outlier(mean):
            reason = f"loss {self.recipe.skip_loss_sigma:g} standard deviations above the last {_HISTORY}"
        else:
            reason = ""
        return Verdict(losses, mean, reason)

    def note(self, verdict: Verdict, is_applied: bool) -> Outcome:
        """Take note of how a step ended, and say it."""
        skipped_because = verdict.reason or ("" if is_applied else "gradients not finite")
        # Dynamic loss scaling finds its scale by such steps: they say nothing of the weights.
        is_scaling = self.recipe.precision == "fp16" and not verdict.reason
        self.bad_steps = self.bad_steps + 1 if skipped_because and not is_scaling else 0
        if skipped_because:
            return Outcome(skipped_because, spike=None)
        self._history.append(verdict.mean)
        return Outcome("", self._look_for_spike())

    @property
    def must_roll_back(self) -> bool:
        """Whether too many bad steps came in a row."""
        return self.bad_steps >= BAD_STEPS

    def roll_back(self, step: int, saved_step: int, reason: str) -> None:
        """Pass over the data from `saved_step` on: the weights of that step are loaded again at `step`.

        Raises:
            UserError: it is one roll-back too many.
        """
        self.roll_backs += 1
        if self.roll_backs > ROLL_BACKS:
            raise UserError(
                f"step {step}: {reason}, after {ROLL_BACKS} roll-backs; look at {self.debug_folder} "
                "and lower train.optim.lr or clean the data"
            )
        self.shift += step - saved_step
        self.bad_steps = 0

    def resume(self, roll_back_events: Iterable[Mapping[str, Any]]) -> None:
        """Go on from what the training's events and its checkpoint say; all workers call it together.

        Rank 0 decides: the others may not see yet what it has written.
        """
        for event in roll_back_events:
            self._pass_over(event["shift"], event["roll_backs"])
        decided = [(self.shift, self.roll_backs)]
        if dist.is_initialized():
            dist.broadcast_object_list(decided)
        self.shift, self.roll_backs = decided[0]

    def _pass_over(self, shift: int, roll_backs: int) -> None:
        # A checkpoint may be older than a roll-back to it, so what it says never takes one back.
        self.shift = max(self.shift, shift)
        self.roll_backs = max(self.roll_backs, roll_backs)

    def state(self) -> JsonObject:
        """Return what a checkpoint saves."""
        return {
            "history": list(self._history),
            "bad": self.bad_steps,
            "lowest": min(self._lowest_mean, 1e9),
            "shift": self.shift,
            "roll_backs": self.roll_backs,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self._history = deque(state["history"], maxlen=_HISTORY)
        self.bad_steps = state["bad"]
        self._lowest_mean = state["lowest"]
        self._pass_over(state["shift"], state["roll_backs"])

    def _is_outlier(self, mean: float) -> bool:
        sigma = self.recipe.skip_loss_sigma
        if sigma is None or len(self._history) < _HISTORY:
            return False
        return mean > statistics.fmean(self._history) + sigma * statistics.pstdev(self._history)

    def _look_for_spike(self) -> Spike | None:
        # Windows, not single steps: batches differ by more than a spike that matters.
        if len(self._history) < SPIKE_WINDOW:
            return None
        mean = statistics.fmean(list(self._history)[-SPIKE_WINDOW:])
        lowest_mean = self._lowest_mean
        is_above = mean > lowest_mean + _SPIKE
        begins = is_above and not self._in_spike
        self._in_spike = is_above
        self._lowest_mean = min(lowest_mean, mean)
        return Spike(mean, lowest_mean) if begins else None
