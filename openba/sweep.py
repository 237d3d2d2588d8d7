"""Trials of a sweep: the product of several settings' values, each an ordinary pipeline.

Owns the parsing of `--set key=value,value`, the steps that trials share, and the table and picture of
their losses. It builds nothing: a trial's steps are those that `openba run` with its settings would build, so
either reuses the other's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from openba.artifacts import Step
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.json_types import JsonObject
from openba.recipes.train import TrainStep

MOST_TRIALS = 100
"""More trials are probably a mistake in the settings, and are refused."""


@dataclass(frozen=True)
class Trial:
    """One combination of values."""

    values: Mapping[str, str]
    """Setting -> value, for the settings that vary."""
    pipeline: Pipeline
    step: Step
    """The training whose held-out loss is compared."""

    @property
    def label(self) -> str:
        """The trial's values in one line, for tables and pictures."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())


@dataclass(frozen=True)
class Result:
    """Result of a trial; without a loss where it failed."""

    trial: Trial
    loss: float | None
    """Held-out loss at the end, in nats per target token."""
    error: float | None
    """Standard error of the loss over the held-out samples, which all trials share."""
    seconds: float | None
    heldout: Sequence[Mapping[str, float]]
    """Every measurement of the training."""

    def row(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "values": dict(self.trial.values),
            "step": self.trial.step.key,
            "loss": self.loss,
            "standard_error": self.error,
            "seconds": self.seconds,
            "heldout": list(self.heldout),
        }


def make_trials(pipeline: str, settings: Sequence[str], until: str | None) -> list[Trial]:
    """Make a trial for every combination of the settings' values.

    Args:
        pipeline: name or file.
        settings: `key=value` or `key=value,value,...`; at least one has several values.
        until: the training that is compared; none: the last stage.

    Raises:
        UserError: nothing varies, a value is empty or repeated, there are too many trials, `until` is no
            training, or a setting does not change it.
    """
    values_by_key = {key: values for key, values in map(_parse, settings)}
    if len(values_by_key) < len(settings):
        raise UserError("sweep: a setting is given twice; give all its values in one --set")
    varied_values = {key: values for key, values in values_by_key.items() if len(values) > 1}
    if not varied_values:
        raise UserError(
            "sweep: nothing varies; give several values, such as --set stages.stage1.optim.lr=1e-3,3e-3"
        )
    if (trial_count := math.prod(map(len, varied_values.values()))) > MOST_TRIALS:
        raise UserError(f"sweep: {trial_count} trials are more than {MOST_TRIALS}; give fewer values")
    trials = []
    for chosen_values in product(*values_by_key.values()):
        values = dict(zip(values_by_key, chosen_values, strict=True))
        graph = Pipeline(
            find_pipeline(pipeline), [f"{k}={value}" for k, value in values.items()], strict=True
        )
        step = graph.step(until or graph.config.last_stage or next(iter(graph.experts)))
        if not isinstance(step.recipe, TrainStep):
            trainings = ", ".join(name for name, s in graph.steps.items() if isinstance(s.recipe, TrainStep))
            raise UserError(f"sweep: --until {step.name} is no training; take one of {trainings}")
        trials.append(Trial({key: values[key] for key in varied_values}, graph, step))
    _check_that_all_differ(trials, varied_values)
    return trials


def _parse(setting: str) -> tuple[str, list[str]]:
    """Split `key=1,[2, 3]` into key and values, at commas outside of brackets, braces and quotes."""
    key, equals_sign, values_text = setting.partition("=")
    if not equals_sign or not key:
        raise UserError(f"--set {setting}: write it as key.path=value or key.path=value,value")
    values = [""]
    bracket_depth = 0
    open_quote = ""
    for character in values_text:
        if open_quote:
            open_quote = "" if character == open_quote else open_quote
        elif character in "\"'":
            open_quote = character
        elif character in "[{":
            bracket_depth += 1
        elif character in "]}":
            bracket_depth -= 1
        if character == "," and bracket_depth == 0 and not open_quote:
            values.append("")
        else:
            values[-1] += character
    values = [value.strip() for value in values]
    if len(values) > 1 and "" in values:
        raise UserError(f"--set {setting}: a value is empty; remove the comma or give the value")
    if len(set(values)) < len(values):
        raise UserError(f"--set {setting}: a value is given twice; remove one")
    return key, values


def _check_that_all_differ(trials: Sequence[Trial], varied_values: Mapping[str, Sequence[str]]) -> None:
    """Refuse a setting that does not change the compared step: all its trials would be the same."""
    fingerprints = {tuple(trial.values.values()): trial.step.fingerprint for trial in trials}
    first_values = tuple(values[0] for values in varied_values.values())
    for position, (key, values) in enumerate(varied_values.items()):
        for value in values[1:]:
            changed_values = (*first_values[:position], value, *first_values[position + 1 :])
            # One setting at a time against the first trial, so that the message can name it.
            if fingerprints[changed_values] == fingerprints[first_values]:
                raise UserError(
                    f"--set {key}: {values[0]} and {value} give the same {trials[0].step.name}; sweep what "
                    "changes it, or name another step with --until"
                )


def steps_of(trials: Sequence[Trial]) -> list[Step]:
    """Return the steps that the trials need, inputs first and each once."""
    steps_by_key: dict[str, Step] = {}
    for trial in trials:
        for step in trial.step.walk():
            steps_by_key.setdefault(step.key, step)
    return list(steps_by_key.values())


def result(trial: Trial, record: Mapping[str, Any] | None) -> Result:
    """Return a trial's result from its step's manifest; none where the step failed."""
    if record is None:
        return Result(trial, None, None, None, [])
    heldout_rows = record["facts"]["heldout"]
    loss = heldout_rows[-1]["loss"]
    loss_error = heldout_rows[-1].get("loss_error")
    return Result(trial, loss if math.isfinite(loss) else None, loss_error, record["seconds"], heldout_rows)


def ranked(results: Sequence[Result]) -> list[Result]:
    """Order results by loss, lowest first; those without one come last, in the order of the trials."""
    return sorted(
        results, key=lambda trial_result: math.inf if trial_result.loss is None else trial_result.loss
    )


def verdict(results: Sequence[Result]) -> str:
    """Return the best trial with its error, and the trials within one standard error of it."""
    best, *others = ranked(results)
    if best.loss is None:
        return "no trial reached a finite held-out loss"
    verdict_text = f"best: {best.trial.label}: held-out loss {best.loss:.4f}"
    if best.error is None:
        return verdict_text
    verdict_text += f" ± {best.error:.4f}"
    close_trials = [
        other.trial.label
        for other in others
        if other.loss is not None and other.loss - best.loss < math.hypot(best.error, other.error or 0.0)
    ]
    return (
        f"{verdict_text}; within one standard error of it: {'; '.join(close_trials)}"
        if close_trials
        else verdict_text
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Write an SVG: held-out loss by step of every trial, and the last loss with its error."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ranked_results = [trial_result for trial_result in ranked(results) if trial_result.loss is not None]
    figure = Figure(figsize=(9.6, max(2.8, 1.2 + 0.28 * len(ranked_results))), layout="constrained")
    curve_axes, end_axes = figure.subplots(1, 2)
    for row_number, trial_result in enumerate(ranked_results):
        color = f"C{row_number % 10}"
        curve_points = [
            (row["step"], row["loss"]) for row in trial_result.heldout if math.isfinite(row["loss"])
        ]
        curve_axes.plot(*zip(*curve_points, strict=True), color=color, marker="o", markersize=3)
        end_axes.errorbar(
            trial_result.loss, row_number, xerr=trial_result.error, color=color, marker="o", capsize=3
        )
    curve_axes.set_xlabel("step")
    curve_axes.set_ylabel("held-out loss, nats a token")
    end_axes.set_yticks(
        range(len(ranked_results)), [trial_result.trial.label for trial_result in ranked_results], fontsize=8
    )
    end_axes.invert_yaxis()
    end_axes.set_xlabel("held-out loss at the end ± standard error")
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path, metadata={"Date": None})
