"""What the models can do, best first: each benchmark's last score beside the baselines on the same records.

Owns which score stands for a benchmark, what counts as its floor and as the best classical model, and the
verdict between them. It formats nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from openba.recipes.evaluate import LOWER_IS_BETTER
from openba.report.schema import Evaluation

MOST_FREQUENT = "most frequent answer"
"""The baseline of `openba.evaluate.baselines` that every benchmark has."""

Verdict = Literal["won", "tied", "lost"]


class Rival(NamedTuple):
    """A score to compare with, in the benchmark's unit."""

    name: str
    score: float
    stderr: float


class Skill(NamedTuple):
    """One benchmark's score and what it is to be seen beside."""

    evaluation: Evaluation
    metric: str
    score: float
    stderr: float
    floor: Rival | None
    """The better of chance and the most frequent answer: what no training is needed for."""
    classical: Rival | None
    """The best classical model."""
    verdict: Verdict | None
    """Against it: `tied` within one standard error of the difference."""
    gain: float | None
    """Share of the way from the floor to 100; None of a score without a floor or of another scale."""


def skills(evaluations: Sequence[Evaluation]) -> list[Skill]:
    """A row a benchmark, of the model that was evaluated on it last; the greatest gain first.

    Left out are evaluations without a score.
    """
    last = {row["benchmark"]: row for row in evaluations if row.get("scores")}
    rows = [_skill(row) for row in last.values()]
    return sorted(rows, key=lambda row: -math.inf if row.gain is None else row.gain, reverse=True)


def _skill(row: Evaluation) -> Skill:
    metric, score = next(iter(row["scores"].items()))
    stderr = row.get("stderr", {}).get(metric, 0.0)
    baselines: Mapping[str, Any] = row.get("baselines") or {}
    rivals = [
        Rival(name, found["scores"][metric], found["stderr"].get(metric, 0.0))
        for name, found in baselines.get("methods", {}).items()
        if metric in found["scores"]
    ]
    floors = [rival for rival in rivals if rival.name == MOST_FREQUENT]
    if metric in baselines.get("chance", {}):
        floors.append(Rival("chance", baselines["chance"][metric], 0.0))
    others = [rival for rival in rivals if rival.name != MOST_FREQUENT]
    floor = max(floors, key=lambda rival: rival.score, default=None)
    classical = max(others, key=lambda rival: rival.score, default=None)
    gain = None
    if floor is not None and metric not in LOWER_IS_BETTER and floor.score < 100:
        gain = (score - floor.score) / (100 - floor.score)
    return Skill(row, metric, score, stderr, floor, classical, _verdict(score, stderr, classical), gain)


def _verdict(score: float, stderr: float, rival: Rival | None) -> Verdict | None:
    if rival is None:
        return None
    difference = score - rival.score
    if abs(difference) <= math.hypot(stderr, rival.stderr):
        return "tied"
    return "won" if difference > 0 else "lost"
