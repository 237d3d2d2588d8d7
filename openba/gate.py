"""Rules by which a step's output may start the next step, and a candidate become champion.

Pure functions of facts, which `tasks/evidence.py` gathers. A number that is missing or not finite counts
against the model.
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
    """Facts of a trained model; None where a step was not built."""

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
    """Largest difference of logits between the loaded export and openba, or the error of loading it."""
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
    """Return reasons why a training's output must not start the next step; empty if there are none.

    Args:
        facts: of the training step's manifest.
        max_heldout_loss: nats per token; None asks only for a finite loss.
    """
    heldout_loss = facts.get("heldout_loss")
    if heldout_loss is None or not _is_finite(heldout_loss):
        return ["heldout_loss: missing or not finite"]
    if max_heldout_loss is not None and heldout_loss > max_heldout_loss:
        return [f"heldout_loss: {heldout_loss:.4f} is above {max_heldout_loss:g}"]
    return []


def evaluation_refusals(benchmarks: tuple[str, ...], results: JsonObject | None) -> list[str]:
    """Return reasons why an evaluation is incomplete: a benchmark is missing or has no finite score.

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
    """Return reasons why scores cannot be compared: the first metric or its standard error is not finite.

    Models are compared by their first metric; the others are not looked at.
    """
    metric = next((key for key in scores if key != "n"), None)
    if metric is None:
        return ["no score"]
    compared_keys = [metric, f"{metric}_stderr"] if f"{metric}_stderr" in scores else [metric]
    return [f"{key} is {scores[key]}" for key in compared_keys if not _is_finite(scores[key])]


def champion_refusals(candidate: Evidence, against: Against | None, gate: GateConfig) -> list[str]:
    """Return reasons against making a model champion; empty if there are none.

    Args:
        candidate: what is known of the candidate.
        against: the present champion; None if there is none.
        gate: the pipeline's rules.
    """
    lines = stage_refusals(candidate.facts, None)
    if gate.evaluation:
        lines += evaluation_refusals(candidate.benchmarks, candidate.results)
    # What fails by itself need not be compared: the reasons would hide the cause.
    if against is not None and not lines:
        lines += _worse(candidate, against, gate)
    if gate.contamination is not None:
        lines += _contaminated(candidate, gate.contamination, gate.trained_on)
    if gate.licences:
        unstated_names = sorted(name for name, licence in candidate.licences.items() if _unstated(licence))
        lines += [f"licences: {name} states none" for name in unstated_names]
    if gate.export:
        lines += _exported(candidate.logits_apart)
    if gate.energy and not (_is_finite(candidate.kwh) and candidate.kwh > 0):  # type: ignore[operator]
        lines.append(f"energy: {candidate.kwh} kWh known of its training")
    return lines


def not_compared(against: Against | None) -> list[str]:
    """Return benchmarks whose scores do not compare with the champion's, with the reason."""
    rows = (against.benchmarks or []) if against else []
    lines = [f"{row['benchmark']} (other {', '.join(row['changed'])})" for row in rows if row.get("changed")]
    return lines + [f"{row['benchmark']} (run for one only)" for row in rows if "difference" not in row]


def _worse(candidate: Evidence, against: Against, gate: GateConfig) -> Iterator[str]:
    """Yield reasons by which the candidate is worse than the champion, or cannot be compared with it."""
    champion_label = f"champion v{against.version}"
    if gate.heldout_loss is not None:
        candidate_loss = candidate.facts["heldout_loss"]
        champion_loss = against.heldout_loss
        if not _is_finite(champion_loss):
            yield f"heldout_loss: {champion_label} has none to compare with"
        elif candidate_loss > champion_loss + gate.heldout_loss:
            yield (
                f"heldout_loss: {candidate_loss:.4f}, {champion_label} {champion_loss:.4f}, "
                f"{gate.heldout_loss:g} may be lost"
            )
    if gate.standard_errors is None or not candidate.benchmarks:
        return
    if against.benchmarks is None:
        yield f"standard_errors: the evaluation of {champion_label} or of the candidate is missing"
        return
    for row in against.benchmarks:
        # Another benchmark under the same name; `not_compared` reports it.
        if "difference" not in row or row["changed"]:
            continue
        if not (_is_finite(row["difference"]) and _is_finite(row["stderr"])):
            yield (
                f"{row['benchmark']}: difference to {champion_label} is {row['difference']}, its standard "
                f"error {row['stderr']}"
            )
        elif _gain(row) < -gate.standard_errors * row["stderr"]:
            yield (
                f"{row['benchmark']}: {row['other']['metric']} {row['other']['score']:.2f}, {champion_label} "
                f"{row['one']['score']:.2f}; {gate.standard_errors:g} standard errors "
                f"are {gate.standard_errors * row['stderr']:.2f}"
            )


def _gain(row: JsonObject) -> float:
    """Return by how much the candidate's score is better; of perplexity and the like less is better."""
    return -row["difference"] if row.get("lower_is_better") else row["difference"]


def _contaminated(candidate: Evidence, share_limit: float, trained_on: tuple[str, ...]) -> Iterator[str]:
    """Yield benchmarks that stand in the training data, but for those that are trained on by design."""
    if candidate.contamination is None:
        yield "contamination: not built"
        return
    contamination_rows = {row["set"]: row for row in candidate.contamination["sets"]}
    for name in candidate.benchmarks:
        if name in trained_on:
            continue
        if (row := contamination_rows.get(name)) is None:
            yield f"contamination: {name} was not looked for"
            continue
        searched_records = row["records"] - row["too_short"]
        if not row["dirty"] <= share_limit * searched_records:
            dirty_records = f"{row['dirty']} of {searched_records} records stand in the training data"
            yield f"contamination: {name}: {dirty_records}"


def _exported(logit_difference: float | str | None) -> Iterator[str]:
    if logit_difference is None:
        yield "export: was not loaded"
    elif isinstance(logit_difference, str):
        yield f"export: {logit_difference}"
    elif not logit_difference <= 0:
        yield f"export: logits of the loaded folder differ by up to {logit_difference:g}"


def _unstated(licence: str) -> bool:
    return not licence.strip() or licence.casefold().startswith(("unstated", "unknown"))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
