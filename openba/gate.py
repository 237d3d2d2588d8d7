"""Whether a finished training step may go on to the next one. A pure function of facts.

Owns the rules for a stage; the rules for becoming champion stand in the registry. A number that
is missing or not finite is a reason against, never for.
"""

from __future__ import annotations

import math
from typing import Any

from openba.recipes.pipeline import GateConfig


def stage_refusals(facts: dict[str, Any], max_heldout_loss: float | None) -> list[str]:
    """Reasons why a training's output must not start the next step; empty if there are none.

    Args:
        facts: of the training step's manifest.
        max_heldout_loss: nats per token; None asks only for a finite loss.
    """
    loss = facts.get("heldout_loss")
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        return [f"heldout_loss: {loss} is no finite number"]
    if max_heldout_loss is not None and loss > max_heldout_loss:
        return [f"heldout_loss: {loss:.4f} is above {max_heldout_loss:g}"]
    return []


def champion_refusals(
    facts: dict[str, Any],
    evaluation: dict[str, Any] | None,
    contamination: dict[str, Any] | None,
    gate: GateConfig,
) -> list[str]:
    """Reasons against making a trained step champion, apart from how it compares with the present one.

    Args:
        facts: of the training step's manifest.
        evaluation: facts of its evaluation, None if it has not been built.
        contamination: facts of the contamination step, None if it has not been built.
        gate: the pipeline's rules.
    """
    reasons = stage_refusals(facts, None)
    if gate.evaluation:
        results = (evaluation or {}).get("benchmarks") or {}
        reasons += [] if results else ["evaluation: not built"]
        reasons += [f"evaluation: {name}: {row['error']}" for name, row in results.items() if "error" in row]
    if gate.contamination and contamination is None:
        reasons.append("contamination: not built")
    if gate.energy and not _positive(facts.get("energy_joules")):
        reasons.append(f"energy: {facts.get('energy_joules')} joules logged")
    return reasons


def _positive(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_positive(part) for part in value.values())
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
