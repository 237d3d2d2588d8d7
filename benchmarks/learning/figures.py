"""Group `learning`: what the shipped runs learn, whether we learn what T5 learns, and what stops it.

Trials are those of `trials.py`; results are kept in `OPENBA_HOME/learning`, so a group that was
stopped goes on. The pictures of docs/learning.md are drawn anew in docs/pictures.
The shipped runs are `runs.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks.figure import ROOT, Figure
from benchmarks.learning import runs
from benchmarks.learning.pictures import draw_curves, draw_rates
from benchmarks.learning.trials import Task, Trial, make_inputs, run

RATES = (7e-4, 1.5e-3, 3e-3)
STEPS: dict[Task, int] = {"copy": 300, "classify": 200, "ul2": 300}
_SCHEDULE: dict[Task, Any] = {"copy": "constant", "classify": "constant", "ul2": "cosine"}
COMPARED = {
    (task, model, rate): Trial(task, model, rate, STEPS[task], schedule=_SCHEDULE[task])
    for task in STEPS
    for rate in RATES
    for model in ("openba", "t5")
}
"""Ours and T5, each at every rate."""
_CLASSIFY = Trial("classify", "openba", 1.5e-3, STEPS["classify"])
CAUSES = {
    "as shipped before": Trial(
        "classify", "openba", 1.5e-3, STEPS["classify"], init_std=0.02, scale_embedding=False
    ),
    "weights by width only": Trial("classify", "openba", 1.5e-3, STEPS["classify"], scale_embedding=False),
    "scaled embedding only": Trial("classify", "openba", 1.5e-3, STEPS["classify"], init_std=0.02),
    "both, no sandwich norm": Trial("classify", "openba", 1.5e-3, STEPS["classify"], sandwich=False),
    "both": _CLASSIFY,
    "both, 3 + 3 layers": Trial("classify", "openba", 1.5e-3, STEPS["classify"], encoder_layers=3),
    "both, from 300 steps of UL2": Trial(
        "classify", "openba", 1.5e-3, STEPS["classify"], start=COMPARED["ul2", "openba", 3e-3]
    ),
}
"""Each cause with and without its remedy, at the rate that `tiny` shipped with."""

Measurements = dict[Trial, list[dict[str, Any]]]


def figures() -> Iterator[Figure]:
    """Measure the shipped runs, our model against T5 on each task, then the causes."""
    yield from runs.figures()
    make_inputs()
    results = _run([*COMPARED.values(), *CAUSES.values()])
    names = {"copy": ["copy"], "classify": ["bbc-topic", "review-sentiment"], "ul2": ["ul2"]}
    for task, parts in names.items():
        for part in parts:
            yield _against_t5(task, part, results)
    for name, trial in CAUSES.items():
        figure = f"learning/topic_exact: {name}"
        yield Figure(figure, 100 * results[trial][-1]["tasks"]["bbc-topic"]["exact"], "%", None, "higher")
    pictures = ROOT / "docs" / "pictures"
    draw_rates(COMPARED, results, names, pictures / "learning-rates.svg")
    draw_curves(CAUSES, results, pictures / "learning-causes.svg")


def _run(trials: list[Trial]) -> Measurements:
    """Results of all trials, one process a core; what another trial starts from comes first."""
    order = list(dict.fromkeys([*(trial.start for trial in trials if trial.start), *trials]))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        first = [trial for trial in order if trial.start is None]
        results = dict(zip(first, pool.map(run, first), strict=True))
        rest = [trial for trial in order if trial.start is not None]
        return results | dict(zip(rest, pool.map(run, rest), strict=True))


def _against_t5(task: str, part: str, results: Measurements) -> Figure:
    """Held-out loss at the end of our best rate over that of T5's best rate."""
    ends = {
        model: {
            rate: results[trial][-1]["tasks"][part]["loss"]
            for (of_task, of_model, rate), trial in COMPARED.items()
            if (of_task, of_model) == (task, model)
        }
        for model in ("openba", "t5")
    }
    (ours, our_rate), (theirs, their_rate) = (
        min((loss, rate) for rate, loss in ends[model].items()) for model in ("openba", "t5")
    )
    peer = f"ours {ours:.3f} at {our_rate:g}, T5 {theirs:.3f} at {their_rate:g}"
    return Figure(f"learning/{part}_loss_of_t5s", ours / theirs, "x", 1.0, peer=peer)
