"""Trials of a sweep: the product of several settings' values, each an ordinary pipeline.

Owns how `--set key=value,value` is read, which steps the trials have in common, and the table and picture of
what they reached. It builds nothing: a trial's steps are those that `openba run` with its settings would
build, so either finds the other's outputs.
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
"""More are taken for a mistake."""


@dataclass(frozen=True)
class Trial:
    """One combination of values."""

    values: Mapping[str, str]
    """Setting -> value, of the settings that vary."""
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
    """Held-out loss at the end, in nats a target token."""
    error: float | None
    """Its standard error, over the held-out samples; all trials are measured on the same."""
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
    choices = {key: values for key, values in map(_parse, settings)}
    if len(choices) < len(settings):
        raise UserError("sweep: a setting is given twice; give all its values in one --set")
    varied = {key: values for key, values in choices.items() if len(values) > 1}
    if not varied:
        raise UserError(
            "sweep: nothing varies; give several values, such as --set stages.stage1.optim.lr=1e-3,3e-3"
        )
    if (count := math.prod(map(len, varied.values()))) > MOST_TRIALS:
        raise UserError(f"sweep: {count} trials are more than {MOST_TRIALS}; give fewer values")
    trials = []
    for combination in product(*choices.values()):
        values = dict(zip(choices, combination, strict=True))
        graph = Pipeline(find_pipeline(pipeline), [f"{k}={v}" for k, v in values.items()], strict=True)
        step = graph.step(until or graph.config.last_stage or next(iter(graph.experts)))
        if not isinstance(step.recipe, TrainStep):
            trainings = ", ".join(name for name, s in graph.steps.items() if isinstance(s.recipe, TrainStep))
            raise UserError(f"sweep: --until {step.name} is no training; take one of {trainings}")
        trials.append(Trial({key: values[key] for key in varied}, graph, step))
    _check_that_all_differ(trials, varied)
    return trials


def _parse(setting: str) -> tuple[str, list[str]]:
    """`key=1,[2, 3]` to its key and values: commas inside brackets, braces and quotes do not separate."""
    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise UserError(f"--set {setting}: write it as key.path=value or key.path=value,value")
    values = [""]
    depth = 0
    quote = ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += character
    values = [value.strip() for value in values]
    if len(values) > 1 and "" in values:
        raise UserError(f"--set {setting}: a value is empty; remove the comma or give the value")
    if len(set(values)) < len(values):
        raise UserError(f"--set {setting}: a value is given twice; remove one")
    return key, values


def _check_that_all_differ(trials: Sequence[Trial], varied: Mapping[str, Sequence[str]]) -> None:
    """Refuse a setting that leaves the compared step as it is: all its trials would be one."""
    fingerprints = {tuple(trial.values.values()): trial.step.fingerprint for trial in trials}
    first = tuple(values[0] for values in varied.values())
    for position, (key, values) in enumerate(varied.items()):
        for value in values[1:]:
            other = (*first[:position], value, *first[position + 1 :])
            if fingerprints[other] == fingerprints[first]:
                raise UserError(
                    f"--set {key}: {values[0]} and {value} give the same {trials[0].step.name}; sweep what "
                    "changes it, or name another step with --until"
                )


def steps_of(trials: Sequence[Trial]) -> list[Step]:
    """Return the steps that all trials together need, inputs first; what they have in common once."""
    steps_by_key: dict[str, Step] = {}
    for trial in trials:
        for step in trial.step.walk():
            steps_by_key.setdefault(step.key, step)
    return list(steps_by_key.values())


def result(trial: Trial, record: Mapping[str, Any] | None) -> Result:
    """Return a trial's result from its step's manifest; none where the step failed."""
    if record is None:
        return Result(trial, None, None, None, [])
    heldout = record["facts"]["heldout"]
    loss = heldout[-1]["loss"]
    error = heldout[-1].get("loss_error")
    return Result(trial, loss if math.isfinite(loss) else None, error, record["seconds"], heldout)


def ranked(results: Sequence[Result]) -> list[Result]:
    """Order results by loss, lowest first; those without one come last, in the order of the trials."""
    return sorted(results, key=lambda each: math.inf if each.loss is None else each.loss)


def verdict(results: Sequence[Result]) -> str:
    """Return the best trial with its error, and how many cannot be told from it."""
    best, *others = ranked(results)
    if best.loss is None:
        return "no trial reached a finite held-out loss"
    text = f"best: {best.trial.label}: held-out loss {best.loss:.4f}"
    if best.error is None:
        return text
    text += f" ± {best.error:.4f}"
    close = [
        other.trial.label
        for other in others
        if other.loss is not None and other.loss - best.loss < math.hypot(best.error, other.error or 0.0)
    ]
    return f"{text}; within one standard error of it: {'; '.join(close)}" if close else text


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the picture, an SVG: held-out loss by step of every trial, and the last one with its error."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    order = [each for each in ranked(results) if each.loss is not None]
    figure = Figure(figsize=(9.6, max(2.8, 1.2 + 0.28 * len(order))), layout="constrained")
    curves, ends = figure.subplots(1, 2)
    for number, each in enumerate(order):
        color = f"C{number % 10}"
        points = [(row["step"], row["loss"]) for row in each.heldout if math.isfinite(row["loss"])]
        curves.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3)
        ends.errorbar(each.loss, number, xerr=each.error, color=color, marker="o", capsize=3)
    curves.set_xlabel("step")
    curves.set_ylabel("held-out loss, nats a token")
    ends.set_yticks(range(len(order)), [each.trial.label for each in order], fontsize=8)
    ends.invert_yaxis()
    ends.set_xlabel("held-out loss at the end ± standard error")
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path, metadata={"Date": None})
