"""Whether pretraining helps: experts of one budget from several starts, by their held-out loss.

Owns the gain and its error. Trainings of one seed see the same samples in the same order whatever they start
from, so a gain is a mean over the seeds' own differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple, TypedDict

NOTHING = "nothing"
MEAN = "mean"


class Loss(NamedTuple):
    """Held-out loss at the end of one training, in nats a target token."""

    expert: str
    start: str
    seed: int
    loss: float


class Gain(TypedDict):
    """One expert from one start against from nothing; the row `mean` is over the experts."""

    expert: str
    start: str
    seeds: int
    loss: float
    loss_from_nothing: float
    gain: float
    """Nats a target token; positive: the start helps."""
    error: float
    """Standard error, over the seeds; of the mean, of the experts' independent errors."""


def transfer_gains(losses: Sequence[Loss]) -> list[Gain]:
    """A row for each expert and start that has two seeds or more of both, then the mean of each start."""
    by_key = {(row.expert, row.start, row.seed): row.loss for row in losses}
    experts = dict.fromkeys(row.expert for row in losses)
    starts = [start for start in dict.fromkeys(row.start for row in losses) if start != NOTHING]
    gains = []
    for expert in experts:
        for start in starts:
            pairs = [
                (by_key[expert, start, row.seed], row.loss)
                for row in losses
                if (row.expert, row.start) == (expert, NOTHING) and (expert, start, row.seed) in by_key
            ]
            if len(pairs) > 1:
                gains.append(_gain(expert, start, pairs))
    return gains + [_mean([gain for gain in gains if gain["start"] == start]) for start in starts if gains]


def _gain(expert: str, start: str, pairs: Sequence[tuple[float, float]]) -> Gain:
    differences = [nothing - loss for loss, nothing in pairs]
    return {
        "expert": expert,
        "start": start,
        "seeds": len(pairs),
        "loss": fmean(loss for loss, _ in pairs),
        "loss_from_nothing": fmean(nothing for _, nothing in pairs),
        "gain": fmean(differences),
        "error": stdev(differences) / math.sqrt(len(differences)),
    }


def _mean(gains: Sequence[Gain]) -> Gain:
    return {
        "expert": MEAN,
        "start": gains[0]["start"],
        "seeds": min(gain["seeds"] for gain in gains),
        "loss": fmean(gain["loss"] for gain in gains),
        "loss_from_nothing": fmean(gain["loss_from_nothing"] for gain in gains),
        "gain": fmean(gain["gain"] for gain in gains),
        "error": math.hypot(*(gain["error"] for gain in gains)) / len(gains),
    }
