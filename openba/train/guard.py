"""Which steps are not taken, and what is kept of them.

Owns the verdict on a step's loss, which all workers reach together, the count of bad steps in a row, the
alarm on a loss that stays up, the stage's `events.jsonl`, and the debug bundle. It restores nothing: the
stage rolls back when `must_roll_back` says so.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file

from openba.errors import UserError
from openba.recipes.train import TrainRecipe
from openba.train.batches import Batch
from openba.train.engine import Engine
from openba.train.log import EVENTS, METRICS, StageLog
from openba.train.source_use import alarms

IN_A_ROW = 3
"""Bad steps, one after the other, after which the weights are no longer trusted."""
ROLL_BACKS = 3
"""Roll-backs of one run after which it stops."""
_WINDOW, _SPIKE = 50, 0.5
"""A spike: the mean of 50 steps is 0.5 nats above the lowest mean of 50 steps before."""
_HISTORY = 128  # steps whose losses the sigma rule knows, as in OLMo-core


@dataclass(frozen=True)
class Verdict:
    """What all workers say of one step's loss."""

    losses: list[float]
    """Summed loss of each worker."""
    mean: float
    """Over all target tokens of the step, in nats."""
    reason: str
    """Why the step is not taken; empty if it is."""
    parts: list[float]
    """Other numbers, summed over all workers on the same way."""


class Guard:
    """The bad steps of one run."""

    def __init__(self, recipe: TrainRecipe, log: StageLog) -> None:
        self.recipe, self.log = recipe, log
        self.shift = 0
        """Steps of data that roll-backs have passed over: step `s` reads the data of step `s + shift`."""
        self.bad, self.roll_backs = 0, 0
        self._history: deque[float] = deque(maxlen=_HISTORY)
        self._lowest, self._alarmed = math.inf, False

    def judge(self, engine: Engine, own: float, targets: int, parts: list[float]) -> Verdict:
        """The verdict on a step before its last gradients; all workers call it and get the same.

        The limit is on the mean over the whole step, so it does not depend on workers and micro-batches.
        """
        each = [own if rank == engine.rank else 0.0 for rank in range(engine.world)]
        sums = engine.sum([*each, *parts])
        losses = sums[: engine.world]
        mean = sum(losses) / max(1, targets)
        broken = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        if broken:
            reason = f"loss not finite on rank {', '.join(map(str, broken))}"
        elif mean > self.recipe.skip_loss_above:
            reason = f"loss above {self.recipe.skip_loss_above:g}"
        elif self._is_outlier(mean):
            reason = f"loss {self.recipe.skip_loss_sigma:g} standard deviations above the last {_HISTORY}"
        else:
            reason = ""
        return Verdict(losses, mean, reason, sums[engine.world :])

    def taken(self, step: int, verdict: Verdict, applied: bool, items: Callable[[], list[int]]) -> str:
        """Note how step `step` (1-based) ended; returns why it was not taken, or nothing."""
        reason = verdict.reason or ("" if applied else "gradients not finite")
        # Dynamic loss scaling finds its scale by such steps: they say nothing of the weights.
        scaling = self.recipe.precision == "fp16" and not verdict.reason
        self.bad = self.bad + 1 if reason and not scaling else 0
        if reason:
            losses = [loss if math.isfinite(loss) else str(loss) for loss in verdict.losses]
            self.log.event("skipped", step, reason=reason, losses=losses, samples=items())
        else:
            self._history.append(verdict.mean)
            self._look_for_spike(step)
        return reason

    @property
    def must_roll_back(self) -> bool:
        """Too many bad steps in a row."""
        return self.bad >= IN_A_ROW

    def rolled_back(self, at: int, to: int, why: str) -> None:
        """The weights of step `to` are back; the data of the steps since then is passed over.

        Raises:
            UserError: it is one roll-back too many.
        """
        self.roll_backs += 1
        if self.roll_backs > ROLL_BACKS:
            raise UserError(
                f"step {at}: {why}, after {ROLL_BACKS} roll-backs; look at {self.log.folder / 'debug'} "
                "and lower train.optim.lr or clean the data"
            )
        self.shift += at - to
        self.bad = 0
        self.log.event("rolled back", to, at=at, why=why, shift=self.shift, roll_backs=self.roll_backs)

    def begin(self) -> None:
        """Go on from what the stage's events and its checkpoint say; all workers call it together.

        Rank 0 decides: the others may not see yet what it has written.
        """
        for row in self.log.rows(EVENTS):
            if row["event"] == "rolled back":
                self._pass_over(row["shift"], row["roll_backs"])
        decided = [(self.shift, self.roll_backs)]
        if dist.is_initialized():
            dist.broadcast_object_list(decided)
        self.shift, self.roll_backs = decided[0]

    def _pass_over(self, shift: int, roll_backs: int) -> None:
        # A checkpoint may be older than a roll-back to it, so what it says never takes one back.
        self.shift = max(self.shift, shift)
        self.roll_backs = max(self.roll_backs, roll_backs)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "history": list(self._history),
            "bad": self.bad,
            "lowest": min(self._lowest, 1e9),
            "shift": self.shift,
            "roll_backs": self.roll_backs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self._history = deque(state["history"], maxlen=_HISTORY)
        self.bad = state["bad"]
        self._lowest = state["lowest"]
        self._pass_over(state["shift"], state["roll_backs"])

    def look_at_source_use(
        self, step: int, figures: Mapping[str, float], entropies: Mapping[str, float]
    ) -> None:
        """Note that the measurement after `step` shows a training that does not use its source.

        Every measurement after twice the warm-up that shows it is an event; nothing else follows from it.
        """
        if step > 2 * self.recipe.optim.warmup and (reasons := alarms(figures, entropies)):
            self.log.event("source not used", step, reasons=reasons)

    def bundle(self, step: int, rank: int, batches: Sequence[Batch], verdict: Verdict) -> Path:
        """Leave in `debug/step-N` what is needed to look into a step: batches and the last rows."""
        folder = self.log.folder / "debug" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{number}/{name}": getattr(batch, name).contiguous()
            for number, batch in enumerate(batches)
            for name in ("encoder_ids", "mask", "decoder_ids", "labels")
        }
        save_file(tensors, folder / f"batches-{rank:05d}.safetensors")
        if rank == 0:
            told = {
                "step": step,
                "losses": [str(loss) for loss in verdict.losses],
                "events": self.log.rows(EVENTS)[-IN_A_ROW:],
                "metrics": self.log.rows(METRICS)[-_WINDOW:],
                "recipe": self.recipe.model_dump(mode="json"),
            }
            (folder / "report.json").write_text(json.dumps(told, indent=1))
        return folder

    def _is_outlier(self, mean: float) -> bool:
        sigma = self.recipe.skip_loss_sigma
        if sigma is None or len(self._history) < _HISTORY:
            return False
        return mean > statistics.fmean(self._history) + sigma * statistics.pstdev(self._history)

    def _look_for_spike(self, step: int) -> None:
        if len(self._history) < _WINDOW:
            return
        mean = statistics.fmean(list(self._history)[-_WINDOW:])
        above = mean > self._lowest + _SPIKE
        if above and not self._alarmed:
            self.log.event("spike", step, mean=mean, lowest=self._lowest)
        self._alarmed = above
        self._lowest = min(self._lowest, mean)
