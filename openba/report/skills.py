"""Rank benchmarks by what the models gained: each one's last score beside the baselines on the same records.

Owns which score stands for a benchmark, which baselines are its floor and its best classical model, and the
verdict between them. It formats nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from openba.recipes.evaluate import LOWER_IS_BETTER
from openba.report.schema import Baselines, Evaluation

MOST_FREQUENT = "most frequent answer"
"""The baseline of `openba.evaluate.baselines` that every benchmark has."""

Verdict = Literal["won", "tied", "lost"]


class Rival(NamedTuple):
    """A baseline's score, in the benchmark's unit."""

    name: str
    score: float
    stderr: float


class Skill(NamedTuple):
    """One benchmark's score and the baselines that it is compared with."""

    evaluation: Evaluation
    metric: str
    score: float
    stderr: float
    floor: Rival | None
    """The better of chance and the most frequent answer: what can be reached without training."""
    classical: Rival | None
    """The best classical model."""
    verdict: Verdict | None
    """Result against the best classical model; `tied` within one standard error of the difference."""
    gain: float | None
    """Share of the distance from the floor to 100 that the score covers; None where there is no floor or
    the scale does not end at 100."""


def skills(evaluations: Sequence[Evaluation]) -> list[Skill]:
    """Return a row for each benchmark, of the model that was evaluated on it last; the greatest gain first.

    Evaluations without a score are left out.
    """
    # Evaluations come in the order of training, so a later model replaces an earlier one.
    last_evaluations = {row["benchmark"]: row for row in evaluations if row.get("scores")}
    rows = [_skill_of(evaluation) for evaluation in last_evaluations.values()]
    return sorted(rows, key=lambda row: -math.inf if row.gain is None else row.gain, reverse=True)


def _skill_of(evaluation: Evaluation) -> Skill:
    metric, score = next(iter(evaluation["scores"].items()))
    stderr = evaluation.get("stderr", {}).get(metric, 0.0)
    baselines: Baselines = evaluation.get("baselines") or {"trained_on": 0, "chance": {}, "methods": {}}
    rivals = [
        Rival(method, scored["scores"][metric], scored["stderr"].get(metric, 0.0))
        for method, scored in baselines["methods"].items()
        if metric in scored["scores"]
    ]
    floors = [rival for rival in rivals if rival.name == MOST_FREQUENT]
    if metric in baselines["chance"]:
        floors.append(Rival("chance", baselines["chance"][metric], 0.0))
    classical_models = [rival for rival in rivals if rival.name != MOST_FREQUENT]
    floor = max(floors, key=lambda rival: rival.score, default=None)
    classical = max(classical_models, key=lambda rival: rival.score, default=None)
    gain = None
    if floor is not None and metric not in LOWER_IS_BETTER and floor.score < 100:
        # Scores end at 100; perplexity and the like have no such end.
        gain = (score - floor.score) / (100 - floor.score)
    verdict = _compare_with(classical, score, stderr)
    return Skill(evaluation, metric, score, stderr, floor, classical, verdict, gain)


def _compare_with(rival: Rival | None, score: float, stderr: float) -> Verdict | None:
    if rival is None:
        return None
    difference = score - rival.score
    if abs(difference) <= math.hypot(stderr, rival.stderr):
        return "tied"
    return "won" if difference > 0 else "lost"
