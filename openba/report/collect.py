"""Gather what a report shows from the manifests of a pipeline's steps: a pure function of the store.

Owns the mapping from facts to the report's sections. It measures nothing and renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from openba.accounting.energy import TrainFacts, cost
from openba.artifacts import Step, Store
from openba.graph import Model, Pipeline, evaluation_name
from openba.plan import plan
from openba.recipes.train import TrainStep
from openba.report.ablation import ablation_rows
from openba.report.paper_tables import evaluation_row, numbers_and_errors
from openba.report.transfer import Loss, transfer_gains
from openba.train.log import METRICS, read_rows

_CURVE_POINTS = 200


def collect(pipeline: Pipeline, store: Store, states: Mapping[str, str]) -> dict[str, Any]:
    """The report's sections that come from the store. `states`: step name -> built or cached, this run."""
    records = {name: store.manifest(step) for name, step in pipeline.steps.items()}

    def facts(name: str) -> dict[str, Any]:
        return (records.get(name) or {}).get("facts", {})

    return {
        "pipeline": pipeline.config.name,
        "size": pipeline.config.size,
        "target": pipeline.config.target.model_dump() if pipeline.config.target else None,
        "plan": plan(pipeline, store)["total"],
        "banner": pipeline.config.report_banner,
        "steps": [_step(step, records[name], states, store) for name, step in pipeline.steps.items()],
        "funnel": _funnel(facts("clean").get("funnel", []), pipeline, facts("tokenizer")),
        "quarantined": [
            {"source": name, **aside}
            for name in pipeline.config.sources
            if (aside := facts(f"source-{name}").get("quarantined")) and aside["first"]
        ],
        "cleaning_examples": facts("clean").get("examples", {}),
        "mixture": facts("mixture"),
        "contamination": facts("contamination").get("sets", []),
        "tokenizer": facts("tokenizer"),
        "training": [_training(m, pipeline, store) for m in pipeline.models if records[m.name]],
        "ablation": ablation_rows(
            {
                name: _shape(step, facts(step.name))
                for name, step in zip(pipeline.config.ablation, pipeline.shapes, strict=True)
                if records[step.name]
            }
        ),
        "transfer": transfer_gains(
            [
                Loss(transfer.expert, transfer.start, transfer.seed, facts(name)["heldout"][-1]["loss"])
                for name, transfer in pipeline.transfers.items()
                if records[name]
            ]
        ),
        "evaluations": [
            row
            for model in pipeline.models
            for prefix in "SRX"
            for row in _evaluations(
                model,
                prefix,
                facts(evaluation_name(model.name, prefix)),
                facts("contamination").get("sets", []),
                facts(model.baselines.name) if model.baselines else {},
            )
        ],
        "evaluations_between": [
            {**row, "step": at}
            for model in pipeline.models
            for prefix in "SRX"
            for at in pipeline.kept(model.name)
            for row in _evaluations(model, prefix, facts(evaluation_name(model.name, prefix, at)), [], {})
        ],
        "not_run": [
            {"what": name, "why": _why(states.get(name))} for name in pipeline.steps if records[name] is None
        ],
    }


def _funnel(
    rows: list[dict[str, Any]], pipeline: Pipeline, tokenizer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows with tokens: cleaning comes before the tokenizer, so they follow from the bytes."""
    sizes = tokenizer.get("bytes_per_token", {})
    found = []
    for row in rows:
        size = sizes.get(pipeline.config.sources[row["source"]].language)
        known = (
            {f"tokens_{side}": round(row[f"bytes_{side}"] / size) for side in ("in", "out")} if size else {}
        )
        found.append(row | known)
    return found


def _step(
    step: Step, record: dict[str, Any] | None, states: Mapping[str, str], store: Store
) -> dict[str, Any]:
    state = states.get(step.name, "cached") if record else states.get(step.name, "not run")
    return {
        "name": step.name,
        "title": step.kind.function.rpartition(":")[0],
        "fingerprint": step.fingerprint,
        "state": state,
        "seconds": record["seconds"] if record else None,
        "uri": store.uri(step),
    }


def _why(state: str | None) -> str:
    return f"{state} in this run" if state else "not part of this run (--until), or its inputs failed"


def _training(model: Model, pipeline: Pipeline, store: Store) -> dict[str, Any]:
    record = store.manifest(model.training)
    assert record is not None
    facts = record["facts"]
    rows = [row for row in read_rows(store.path(model.training) / METRICS) if row["loss"] is not None]
    keys = ("step", "loss", "tokens_per_second", "lr")
    every = max(1, len(rows) // _CURVE_POINTS)
    is_expert = model.name in pipeline.experts
    return {
        "step": model.name,
        "title": model.title,
        "parameters": facts["parameters"],
        "steps": facts["steps"],
        "tokens": facts["tokens"],
        "curve": [{key: row[key] for key in keys} for row in rows[::every]],
        "heldout": facts["heldout"],
        # An expert starts from Stage III's weights, so its measurement before the first step is
        # Stage III's loss on the expert's held-out data.
        "baseline_heldout": facts["heldout"][0]["loss"] if is_expert else None,
        "cost": cost(cast(TrainFacts, facts), pipeline.config.runtime),
        "resumed": facts["resumed"],
        "source_alarms": facts["source_alarms"],
    }


def _shape(step: Step, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What Figure 5 needs of one compared training."""
    recipe = step.recipe
    assert isinstance(recipe, TrainStep)
    return {
        "encoder_layers": recipe.model.encoder_layers,
        "decoder_layers": recipe.model.decoder_layers,
        "tokens_per_step": recipe.train.tokens_per_step,
        "parameters": facts["parameters"],
        "heldout": facts["heldout"],
    }


def _evaluations(
    model: Model,
    prefix: str,
    facts: dict[str, Any],
    contamination: list[dict[str, Any]],
    baselines: dict[str, Any],
) -> list[dict[str, Any]]:
    """Rows of one evaluation; with prompts of another mode than the release's they say so in their name."""
    found = {row["set"]: row for row in contamination}
    rows = [evaluation_row(model.name, name, result) for name, result in facts.get("benchmarks", {}).items()]
    measured = baselines.get("benchmarks", {})
    told = [
        {
            **row,
            "contamination": found.get(row["benchmark"]),
            "baselines": _baselines(measured.get(row["benchmark"])),
        }
        for row in rows
    ]
    return told if prefix == "S" else [{**row, "benchmark": f"{row['benchmark']} <{prefix}>"} for row in told]


def _baselines(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What was trained beside the model, in the report's form; None if nothing was."""
    if measured is None:
        return None
    return {
        "trained_on": measured["trained_on"],
        "chance": measured["chance"],
        "methods": {name: numbers_and_errors(scores) for name, scores in measured["baselines"].items()},
    }
