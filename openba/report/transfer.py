"""Measure what pretraining gains: experts of one budget from several starts, by held-out loss.

Owns the gain and its error. Trainings with one seed see the same samples in the same order from every start,
so a gain is the mean of the differences between trainings of the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple, TypedDict

NOTHING = "nothing"
MEAN = "mean"


class Loss(NamedTuple):
    """Held-out loss at the end of one training, in nats per target token."""

    expert: str
    start: str
    seed: int
    loss: float


class Gain(TypedDict):
    """Gain of one expert from one start over fresh weights; the row `mean` is the mean over experts."""

    expert: str
    start: str
    seeds: int
    loss: float
    loss_from_nothing: float
    gain: float
    """Difference of the losses in nats per target token; positive if the start helps."""
    error: float
    """Standard error over the seeds; for the mean row, from the experts' errors as independent ones."""


def transfer_gains(losses: Sequence[Loss]) -> list[Gain]:
    """Return a row for each expert and start with two seeds or more, then the mean of each start."""
    loss_of = {(row.expert, row.start, row.seed): row.loss for row in losses}
    experts = dict.fromkeys(row.expert for row in losses)
    starts = [start for start in dict.fromkeys(row.start for row in losses) if start != NOTHING]
    gains = []
    for expert in experts:
        for start in starts:
            loss_pairs = [
                (loss_of[expert, start, row.seed], row.loss)
                for row in losses
                if (row.expert, row.start) == (expert, NOTHING) and (expert, start, row.seed) in loss_of
            ]
            if len(loss_pairs) > 1:  # one seed has no standard error
                gains.append(_gain_of(expert, start, loss_pairs))
    return gains + [
        _mean_gain([gain for gain in gains if gain["start"] == start]) for start in starts if gains
    ]


def _gain_of(expert: str, start: str, loss_pairs: Sequence[tuple[float, float]]) -> Gain:
    differences = [loss_from_nothing - loss for loss, loss_from_nothing in loss_pairs]
    return {
        "expert": expert,
        "start": start,
        "seeds": len(loss_pairs),
        "loss": fmean(loss for loss, _ in loss_pairs),
        "loss_from_nothing": fmean(loss_from_nothing for _, loss_from_nothing in loss_pairs),
        "gain": fmean(differences),
        "error": stdev(differences) / math.sqrt(len(differences)),
    }


def _mean_gain(gains: Sequence[Gain]) -> Gain:
    return {
        "expert": MEAN,
        "start": gains[0]["start"],
        "seeds": min(gain["seeds"] for gain in gains),
        "loss": fmean(gain["loss"] for gain in gains),
        "loss_from_nothing": fmean(gain["loss_from_nothing"] for gain in gains),
        "gain": fmean(gain["gain"] for gain in gains),
        # The experts are trained independently, so their errors add as squares.
        "error": math.hypot(*(gain["error"] for gain in gains)) / len(gains),
    }
