"""Pictures of docs/learning.md: held-out loss by rate, and the causes' curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.learning.trials import Task, Trial

Results = Mapping[Trial, list[dict[str, Any]]]
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "openba", "font.size": 9}
_NAMES = {"openba": "openba", "t5": "transformers' T5"}


def draw_rates(
    compared: Mapping[tuple[Task, str, float], Trial],
    results: Results,
    parts: Mapping[str, Sequence[str]],
    path: Path,
) -> None:
    """Held-out loss at the end by rate, ours and T5's, one panel for each task."""
    panels = [(task, part) for task, names in parts.items() for part in names]
    figure = Figure(figsize=(2.9 * len(panels), 2.8), layout="constrained")
    for axes, (task, part) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for model, marker in (("openba", "o"), ("t5", "s")):
            points = [
                (rate, results[trial][-1]["tasks"][part]["loss"])
                for (of_task, of_model, rate), trial in compared.items()
                if (of_task, of_model) == (task, model)
            ]
            axes.plot(*zip(*points, strict=True), marker=marker, label=_NAMES[model])
        axes.set(title=part, xlabel="rate", xscale="log")
    figure.axes[0].set_ylabel("held-out loss, nats a token")
    figure.axes[0].legend(frameon=False)
    _save(figure, path)


def draw_curves(causes: Mapping[str, Trial], results: Results, path: Path) -> None:
    """Held-out loss of the two classification tasks by step, one line for each cause."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), ("bbc-topic", "review-sentiment"), strict=True):
        for name, trial in causes.items():
            rows = results[trial]
            axes.plot([row["step"] for row in rows], [row["tasks"][part]["loss"] for row in rows], label=name)
        axes.set(title=part, xlabel="step", ylabel="held-out loss, nats a token")
    figure.axes[1].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context(_STYLE):
        figure.savefig(path, metadata={"Date": None})
