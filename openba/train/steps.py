"""Figures and findings of one optimiser step, as the loop hands them to hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openba.train.batches import Batch
from openba.train.guard import Outcome, Verdict


@dataclass(frozen=True)
class StepFigures:
    """Figures of one optimiser step, the first columns of `metrics.jsonl`."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean cross entropy per target token over all workers, in nats."""
    lr: float
    gradient_norm: float | None
    tokens: int
    """Real (not padding) encoder and target tokens over all workers."""
    targets: int
    skipped: bool
    """Whether the weights stayed as they were: loss or gradients not finite, or above a limit."""


@dataclass(frozen=True)
class FinishedStep:
    """One optimiser step, as hooks see it."""

    figures: StepFigures
    micro_batches: list[Batch]
    """This worker's."""
    verdict: Verdict
    outcome: Outcome
    data_step: int
    """Number of the data that it read; roll-backs pass over data, so it may be ahead of the step."""
    data_seconds: float
    """Time until its batches were there."""
    counts: Mapping[str, float]
    """Sums of `Hook.counts` over all workers."""
    flags: Mapping[str, bool]
    """Flags of `Hook.flags`, each true if it is on any worker."""
    mode_losses: Mapping[str, float]
    """Mean loss of each denoiser's samples, of those that the step had."""

    @property
    def step(self) -> int:
        """Steps done, this one included."""
        return self.figures.step
