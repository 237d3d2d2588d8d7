"""Collect the sections of a report from the manifests of a pipeline's steps: a pure function of the store.

Owns the mapping from facts to the report's sections. It measures nothing and renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from openba.accounting.energy import TrainFacts, cost
from openba.artifacts import Step, Store
from openba.graph import Model, Pipeline, evaluation_name
from openba.json_types import JsonObject
from openba.plan import plan
from openba.recipes.train import TrainStep
from openba.report.ablation import ablation_rows
from openba.report.paper_tables import evaluation_row, numbers_and_errors
from openba.report.transfer import Loss, transfer_gains
from openba.train.log import METRICS, read_rows

_CURVE_POINTS = 200
"""Points of a loss curve in `report.json`; a run of 60,000 steps would make it 5 MB."""


def collect(pipeline: Pipeline, store: Store, states: Mapping[str, str]) -> JsonObject:
    """Return the report's sections that come from the store.

    Args:
        pipeline: the pipeline that was run.
        store: where its outputs are.
        states: step name -> built, cached or failed, in this run.
    """
    records = {step_name: store.manifest(step) for step_name, step in pipeline.steps.items()}

    def facts_of(step_name: str) -> JsonObject:
        return (records.get(step_name) or {}).get("facts", {})

    return {
        "pipeline": pipeline.config.name,
        "size": pipeline.config.size,
        "target": pipeline.config.target.model_dump() if pipeline.config.target else None,
        "plan": plan(pipeline, store)["total"],
        "banner": pipeline.config.report_banner,
        "steps": [
            _step_row(step, records[step_name], states, store) for step_name, step in pipeline.steps.items()
        ],
        "funnel": _funnel_with_tokens(facts_of("clean").get("funnel", []), pipeline, facts_of("tokenizer")),
        "quarantined": [
            {"source": source_name, **quarantined}
            for source_name in pipeline.config.sources
            if (quarantined := facts_of(f"source-{source_name}").get("quarantined")) and quarantined["first"]
        ],
        "cleaning_examples": facts_of("clean").get("examples", {}),
        "mixture": facts_of("mixture"),
        "contamination": facts_of("contamination").get("sets", []),
        "tokenizer": facts_of("tokenizer"),
        "training": [
            _training_row(model, pipeline, store) for model in pipeline.models if records[model.name]
        ],
        "ablation": ablation_rows(
            {
                shape_name: _compared_shape(step, facts_of(step.name))
                for shape_name, step in zip(pipeline.config.ablation, pipeline.shapes, strict=True)
                if records[step.name]
            }
        ),
        "transfer": transfer_gains(
            [
                Loss(
                    transfer.expert, transfer.start, transfer.seed, facts_of(step_name)["heldout"][-1]["loss"]
                )
                for step_name, transfer in pipeline.transfers.items()
                if records[step_name]
            ]
        ),
        "evaluations": [
            row
            for model in pipeline.models
            for prefix in "SRX"
            for row in _evaluation_rows(
                model,
                prefix,
                facts_of(evaluation_name(model.name, prefix)),
                facts_of("contamination").get("sets", []),
                facts_of(model.baselines.name) if model.baselines else {},
            )
        ],
        "evaluations_between": [
            {**row, "step": kept_step}
            for model in pipeline.models
            for prefix in "SRX"
            for kept_step in pipeline.kept(model.name)
            for row in _evaluation_rows(
                model, prefix, facts_of(evaluation_name(model.name, prefix, kept_step)), [], {}
            )
        ],
        "not_run": [
            {"what": step_name, "why": _reason_not_run(states.get(step_name))}
            for step_name in pipeline.steps
            if records[step_name] is None
        ],
    }


def _funnel_with_tokens(
    funnel: list[JsonObject], pipeline: Pipeline, tokenizer_facts: JsonObject
) -> list[JsonObject]:
    """Add tokens to the funnel's rows, from their bytes: text is cleaned before the tokenizer is trained."""
    # By language, as scripts differ in bytes per token.
    bytes_per_token = tokenizer_facts.get("bytes_per_token", {})
    rows = []
    for row in funnel:
        token_size = bytes_per_token.get(pipeline.config.sources[row["source"]].language)
        if token_size:
            row = row | {f"tokens_{side}": round(row[f"bytes_{side}"] / token_size) for side in ("in", "out")}
        rows.append(row)
    return rows


def _step_row(step: Step, record: JsonObject | None, states: Mapping[str, str], store: Store) -> JsonObject:
    # Not asked for in this run, but built in an earlier one: the page may show it.
    state = states.get(step.name, "cached") if record else states.get(step.name, "not run")
    return {
        "name": step.name,
        "title": step.kind.function.rpartition(":")[0],
        "fingerprint": step.fingerprint,
        "state": state,
        "seconds": record["seconds"] if record else None,
        "uri": store.uri(step),
    }


def _reason_not_run(state: str | None) -> str:
    return f"{state} in this run" if state else "not part of this run (--until), or its inputs failed"


def _training_row(model: Model, pipeline: Pipeline, store: Store) -> JsonObject:
    record = store.manifest(model.training)
    assert record is not None
    facts = record["facts"]
    metrics_file = store.path(model.training) / METRICS
    logged_rows = [row for row in read_rows(metrics_file) if row["loss"] is not None]
    curve_keys = ("step", "loss", "tokens_per_second", "lr")
    row_stride = max(1, len(logged_rows) // _CURVE_POINTS)
    is_expert = model.name in pipeline.experts
    return {
        "step": model.name,
        "title": model.title,
        "parameters": facts["parameters"],
        "steps": facts["steps"],
        "tokens": facts["tokens"],
        "curve": [{key: row[key] for key in curve_keys} for row in logged_rows[::row_stride]],
        "heldout": facts["heldout"],
        # An expert starts from Stage III's weights, so its measurement before the first step is
        # Stage III's loss on the expert's held-out data.
        "baseline_heldout": facts["heldout"][0]["loss"] if is_expert else None,
        "cost": cost(cast(TrainFacts, facts), pipeline.config.runtime),
        "resumed": facts["resumed"],
        "source_alarms": facts["source_alarms"],
    }


def _compared_shape(step: Step, facts: JsonObject) -> JsonObject:
    """Return what Figure 5 shows of one compared training."""
    recipe = step.recipe
    assert isinstance(recipe, TrainStep)
    return {
        "encoder_layers": recipe.model.encoder_layers,
        "decoder_layers": recipe.model.decoder_layers,
        "tokens_per_step": recipe.train.tokens_per_step,
        "parameters": facts["parameters"],
        "heldout": facts["heldout"],
    }


def _evaluation_rows(
    model: Model,
    prefix: str,
    evaluation_facts: JsonObject,
    contamination_rows: list[JsonObject],
    baseline_facts: JsonObject,
) -> list[JsonObject]:
    """Return a row for each benchmark of one evaluation.

    The mode token of the prompts is part of the benchmark's name where it is not the release's `<S>`.
    """
    contamination = {row["set"]: row for row in contamination_rows}
    baselines = baseline_facts.get("benchmarks", {})
    name_suffix = "" if prefix == "S" else f" <{prefix}>"
    return [
        {
            **evaluation_row(model.name, benchmark, result),
            "benchmark": f"{benchmark}{name_suffix}",
            "contamination": contamination.get(benchmark),
            "baselines": _baseline_scores(baselines.get(benchmark)),
        }
        for benchmark, result in evaluation_facts.get("benchmarks", {}).items()
    ]


def _baseline_scores(baseline_result: JsonObject | None) -> JsonObject | None:
    """Return the baselines of one benchmark in the report's form; None if there are none."""
    if baseline_result is None:
        return None
    return {
        "trained_on": baseline_result["trained_on"],
        "chance": baseline_result["chance"],
        "methods": {
            method: numbers_and_errors(scores) for method, scores in baseline_result["baselines"].items()
        },
    }
