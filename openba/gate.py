"""Whether a finished step may go on to the next, and a candidate become champion: pure functions of facts.

Owns the rules; who gathers the facts is the registry's matter. A number that is missing or not
finite is a reason against, never for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from openba.json_types import JsonObject
from openba.recipes.pipeline import GateConfig


@dataclass(frozen=True)
class Evidence:
    """Facts of a trained model; None stands for what was not built."""

    facts: JsonObject
    """Of the training step's manifest."""
    benchmarks: tuple[str, ...] = ()
    """Names that its evaluation declares."""
    results: JsonObject | None = None
    """Benchmark -> result, see `openba.evaluate.run.judged`."""
    contamination: JsonObject | None = None
    """Facts of the contamination step."""
    licences: dict[str, str] = field(default_factory=dict)
    """What it was trained on, and `weights` -> licence."""
    logits_apart: float | str | None = None
    """Largest difference of logits between the export and openba, or why it could not be loaded."""
    kwh: float | None = None
    """Energy of its training."""


@dataclass(frozen=True)
class Against:
    """The champion that a candidate is compared with."""

    version: str
    heldout_loss: float
    benchmarks: list[JsonObject] | None
    """Rows of `openba.evaluate.compare`, champion first; None if one of the two evaluations is missing."""


def stage_refusals(facts: JsonObject, max_heldout_loss: float | None) -> list[str]:
    """Reasons why a training's output must not start the next step; empty if there are none.

    Args:
        facts: of the training step's manifest.
        max_heldout_loss: nats per token; None asks only for a finite loss.
    """
    loss = facts.get("heldout_loss")
    if loss is None or not _is_finite(loss):
        return ["heldout_loss: missing or not finite"]
    if max_heldout_loss is not None and loss > max_heldout_loss:
        return [f"heldout_loss: {loss:.4f} is above {max_heldout_loss:g}"]
    return []


def evaluation_refusals(benchmarks: tuple[str, ...], results: JsonObject | None) -> list[str]:
    """Reasons why an evaluation is not complete: a benchmark that is missing, or without a finite score.

    A model whose pipeline declares no evaluation has none to complete.
    """
    if results is None:
        return ["evaluation: not built"] if benchmarks else []
    lines = []
    for name in benchmarks:
        result = results.get(name)
        if result is None:
            lines.append(f"evaluation: {name}: not run")
        elif "error" in result:
            lines.append(f"evaluation: {name}: {result['error']}")
        else:
            lines += [f"evaluation: {name}: {reason}" for reason in _score_refusals(result["scores"])]
    return lines


def _score_refusals(scores: JsonObject) -> list[str]:
    """Reasons why scores cannot be compared: the first metric or its standard error is not finite.

    Models are compared by the first metric, so that a second one that is finite does not help.
    """
    metric = next((key for key in scores if key != "n"), None)
    if metric is None:
        return ["no score"]
    compared = [metric, f"{metric}_stderr"] if f"{metric}_stderr" in scores else [metric]
    return [f"{key} is {scores[key]}" for key in compared if not _is_finite(scores[key])]


def champion_refusals(candidate: Evidence, against: Against | None, gate: GateConfig) -> list[str]:
    """Reasons against making a model champion; empty if there are none.

    Args:
        candidate: what is known of the candidate.
        against: the present champion; None if there is none.
        gate: the pipeline's rules.
    """
    lines = stage_refusals(candidate.facts, None)
    if gate.evaluation:
        lines += evaluation_refusals(candidate.benchmarks, candidate.results)
    if against is not None and not lines:
        lines += _worse(candidate, against, gate)
    if gate.contamination is not None:
        lines += _contaminated(candidate, gate.contamination, gate.trained_on)
    if gate.licences:
        unstated = sorted(name for name, licence in candidate.licences.items() if _unstated(licence))
        lines += [f"licences: {name} states none" for name in unstated]
    if gate.export:
        lines += _exported(candidate.logits_apart)
    if gate.energy and not (_is_finite(candidate.kwh) and candidate.kwh > 0):  # type: ignore[operator]
        lines.append(f"energy: {candidate.kwh} kWh known of its training")
    return lines


def not_compared(against: Against | None) -> list[str]:
    """Benchmarks whose scores do not compare with the champion's, with the reason."""
    rows = (against.benchmarks or []) if against else []
    lines = [f"{row['benchmark']} (other {', '.join(row['changed'])})" for row in rows if row.get("changed")]
    return lines + [f"{row['benchmark']} (run for one only)" for row in rows if "difference" not in row]


def _worse(candidate: Evidence, against: Against, gate: GateConfig) -> Iterator[str]:
    """Reasons by which the candidate is worse than the champion, or cannot be compared with it."""
    champion = f"champion v{against.version}"
    if gate.heldout_loss is not None:
        loss = candidate.facts["heldout_loss"]
        best = against.heldout_loss
        if not _is_finite(best):
            yield f"heldout_loss: {champion} has none to compare with"
        elif loss > best + gate.heldout_loss:
            yield f"heldout_loss: {loss:.4f}, {champion} {best:.4f}, {gate.heldout_loss:g} may be lost"
    if gate.standard_errors is None or not candidate.benchmarks:
        return
    if against.benchmarks is None:
        yield f"standard_errors: the evaluation of {champion} or of the candidate is missing"
        return
    for row in against.benchmarks:
        if "difference" not in row or row["changed"]:
            continue
        if not (_is_finite(row["difference"]) and _is_finite(row["stderr"])):
            yield (
                f"{row['benchmark']}: difference to {champion} is {row['difference']}, its standard error "
                f"{row['stderr']}"
            )
        elif _gain(row) < -gate.standard_errors * row["stderr"]:
            yield (
                f"{row['benchmark']}: {row['other']['metric']} {row['other']['score']:.2f}, {champion} "
                f"{row['one']['score']:.2f}; {gate.standard_errors:g} standard errors "
                f"are {gate.standard_errors * row['stderr']:.2f}"
            )


def _gain(row: JsonObject) -> float:
    """Difference by which the candidate's score is better; of perplexity and the like less is better."""
    return -row["difference"] if row.get("lower_is_better") else row["difference"]


def _contaminated(candidate: Evidence, limit: float, trained_on: tuple[str, ...]) -> Iterator[str]:
    """Reasons by which benchmarks stand in the training data, but for those that are trained on by design."""
    if candidate.contamination is None:
        yield "contamination: not built"
        return
    rows = {row["set"]: row for row in candidate.contamination["sets"]}
    for name in candidate.benchmarks:
        if name in trained_on:
            continue
        if (row := rows.get(name)) is None:
            yield f"contamination: {name} was not looked for"
            continue
        searched = row["records"] - row["too_short"]
        if not row["dirty"] <= limit * searched:
            yield f"contamination: {name}: {row['dirty']} of {searched} records stand in the training data"


def _exported(apart: float | str | None) -> Iterator[str]:
    if apart is None:
        yield "export: was not loaded"
    elif isinstance(apart, str):
        yield f"export: {apart}"
    elif not apart <= 0:
        yield f"export: logits of the loaded folder differ by up to {apart:g}"


def _unstated(licence: str) -> bool:
    return not licence.strip() or licence.casefold().startswith(("unstated", "unknown"))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
