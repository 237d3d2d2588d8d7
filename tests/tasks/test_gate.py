"""The gates' rules one by one, the way back in the promotion log, and who starts whom in prefect.yaml."""

import fnmatch
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.gate import Against, Evidence, champion_refusals, evaluation_refusals, stage_refusals
from openba.graph import Pipeline, find_pipeline
from openba.recipes.pipeline import GateConfig
from tasks.events import PASSED
from tasks.promotions import champions_before

STRICT = load(CONFIGS / "gate" / "default.yaml", GateConfig)
TOPIC = {"method": "choice", "n": 100, "scores": {"accuracy": 60.0, "accuracy_stderr": 4.9, "n": 100}}
CLEAN = {"sets": [{"set": "topic", "records": 100, "too_short": 20, "dirty": 8}]}
SOUND = Evidence(
    facts={"heldout_loss": 2.5},
    benchmarks=("topic",),
    results={"topic": TOPIC},
    contamination=CLEAN,
    licences={"weights": "apache-2.0", "news": "CC0"},
    logits_apart=0.0,
    kwh=0.01,
)


def row(difference: float, changed: tuple[str, ...] = ()) -> dict[str, Any]:
    scores = {"metric": "accuracy", "stderr": 4.0, "n": 100, "score": 60.0}
    return {
        "benchmark": "topic", "one": {**scores, "score": 60.0 - difference}, "other": scores,
        "difference": difference, "stderr": 3.0, "paired": True, "changed": list(changed),
    }  # fmt: skip


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, "2.5"])
def test_a_loss_that_is_no_finite_number_stops_the_chain(loss: Any) -> None:
    assert stage_refusals({"heldout_loss": loss}, None)


def test_a_limit_on_the_loss_is_kept() -> None:
    assert stage_refusals(SOUND.facts, 2.4) == ["heldout_loss: 2.5000 is above 2.4"]
    assert stage_refusals(SOUND.facts, 2.5) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"results": None}, "evaluation: not built"),
        ({"results": {}}, "evaluation: topic: not run"),
        ({"results": {"topic": {"error": "no records"}}}, "evaluation: topic: no records"),
        ({"results": {"topic": {"scores": {"accuracy": math.nan}}}}, "evaluation: topic: accuracy is nan"),
        (
            {"results": {"topic": {"scores": {"accuracy": math.nan, "f1": 60.0, "n": 100}}}},
            "evaluation: topic: accuracy is nan",
        ),
        (
            {"results": {"topic": {"scores": {"accuracy": 60.0, "accuracy_stderr": math.nan, "n": 100}}}},
            "evaluation: topic: accuracy_stderr is nan",
        ),
        ({"contamination": None}, "contamination: not built"),
        ({"contamination": {"sets": []}}, "contamination: topic was not looked for"),
        (
            {"contamination": {"sets": [CLEAN["sets"][0] | {"dirty": 9}]}},
            "contamination: topic: 9 of 80 records stand in the training data",
        ),
        ({"licences": {"weights": ""}}, "licences: weights states none"),
        ({"licences": {"books": "unstated by its publisher"}}, "licences: books states none"),
        ({"logits_apart": None}, "export: was not loaded"),
        ({"logits_apart": "no such tensor"}, "export: no such tensor"),
        ({"logits_apart": math.nan}, "export: logits of the loaded folder differ by up to nan"),
        ({"logits_apart": 0.5}, "export: logits of the loaded folder differ by up to 0.5"),
        ({"kwh": None}, "energy: None kWh known of its training"),
        ({"kwh": 0.0}, "energy: 0.0 kWh known of its training"),
    ],
)
def test_each_rule_refuses_by_itself_and_only_where_it_is_asked_for(change: Any, line: str) -> None:
    assert champion_refusals(SOUND, None, STRICT) == []
    assert champion_refusals(replace(SOUND, **change), None, STRICT) == [line]
    rule = line.partition(":")[0]
    off = STRICT.model_copy(update={rule: None if rule == "contamination" else False})
    assert champion_refusals(replace(SOUND, **change), None, off) == []


def test_a_champion_is_compared_with_by_loss_and_by_standard_errors() -> None:
    best = Against("3", 2.5, [row(-6.0)])
    assert champion_refusals(SOUND, best, STRICT) == []
    assert champion_refusals(SOUND, replace(best, heldout_loss=2.4), STRICT) == [
        "heldout_loss: 2.5000, champion v3 2.4000, 0 may be lost"
    ]
    assert champion_refusals(SOUND, replace(best, benchmarks=[row(-6.1)]), STRICT) == [
        "topic: accuracy 60.00, champion v3 66.10; 2 standard errors are 6.00"
    ]
    other_task = replace(best, benchmarks=[row(-50.0, ("version",))])
    assert champion_refusals(SOUND, other_task, STRICT) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"heldout_loss": math.nan}, "heldout_loss: champion v3 has none to compare with"),
        (
            {"benchmarks": None},
            "standard_errors: the evaluation of champion v3 or of the candidate is missing",
        ),
        (
            {"benchmarks": [row(0.0) | {"stderr": math.nan}]},
            "topic: difference to champion v3 is 0.0, its standard error nan",
        ),
        (
            {"benchmarks": [row(0.0) | {"difference": math.nan}]},
            "topic: difference to champion v3 is nan, its standard error 3.0",
        ),
    ],
)
def test_a_number_that_is_missing_in_the_comparison_is_a_reason_against(change: Any, line: str) -> None:
    best = Against("3", 2.5, [row(-6.0)])
    assert champion_refusals(SOUND, replace(best, **change), STRICT) == [line]
    off = STRICT.model_copy(update={"heldout_loss": None, "standard_errors": None})
    assert champion_refusals(SOUND, replace(best, **change), off) == []


def test_contamination_skips_what_is_trained_on_by_design_and_nothing_else() -> None:
    """The identity set is trained on, so that the model learns its name; the shipped gate names it."""
    taught = replace(
        SOUND,
        benchmarks=("topic", "identity"),
        results={"topic": TOPIC, "identity": TOPIC},
        contamination={
            "sets": [*CLEAN["sets"], {"set": "identity", "records": 30, "too_short": 0, "dirty": 30}]
        },
    )
    assert champion_refusals(taught, None, STRICT) == []
    assert champion_refusals(taught, None, STRICT.model_copy(update={"trained_on": ()})) == [
        "contamination: identity: 30 of 30 records stand in the training data"
    ]


@given(st.floats(-100, 100), st.floats(0, 5), st.floats(0, 5))
def test_a_larger_tolerance_never_refuses_more(difference: float, one: float, other: float) -> None:
    small, large = sorted((one, other))
    best = Against("1", 3.0, [row(difference)])

    def refused(errors: float) -> bool:
        gate = STRICT.model_copy(update={"standard_errors": errors})
        return bool(champion_refusals(SOUND, best, gate))

    assert refused(small) or not refused(large)


def test_an_evaluation_without_a_benchmark_is_not_complete() -> None:
    assert evaluation_refusals(("topic", "title"), {"topic": TOPIC}) == ["evaluation: title: not run"]


@pytest.mark.parametrize("path", sorted((CONFIGS / "gate").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_gate_file_is_valid(path: Path) -> None:
    assert load(path, GateConfig).evaluation


def test_rollbacks_go_back_one_by_one() -> None:
    def before(*events: str) -> list[str]:
        """Of the last champion among events such as `promoted 1`."""
        rows = [dict(zip(("event", "version"), event.rsplit(" ", 1), strict=True)) for event in events]
        champions = [row["version"] for row in rows if row["event"] in ("promoted", "restored")]
        return champions_before(rows, champions[-1])

    assert before("promoted 1") == []
    assert before("promoted 1", "promoted 2", "promoted 3") == ["2", "1"]
    assert before("promoted 1", "promoted 2", "promoted 3", "rolled back 3", "restored 2") == ["1"]
    assert before("promoted 1", "promoted 2", "rolled back 2", "restored 1", "promoted 3") == ["1"]
    assert before("promoted 1", "promoted 2", "promoted 3", "rejected 1") == ["2"]


def test_the_triggers_lead_from_data_to_every_promotion(root: Path) -> None:
    """What a pipeline says may begin is what a deployment waits for: walked from `data` to the end."""
    deployments = yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]
    waits = {
        trigger["match_related"]["prefect.resource.id"]: deployment["name"]
        for deployment in deployments
        for trigger in deployment.get("triggers", [])
        if PASSED in trigger["expect"]
    }
    graph, reached, todo = Pipeline(find_pipeline("tiny")), set(), ["data"]
    while todo:
        for name in graph.after(todo.pop()):
            started = [d for pattern, d in waits.items() if fnmatch.fnmatch(f"openba.step.{name}", pattern)]
            assert len(started) == 1, f"{name} starts {started}"
            reached.add(name)
            todo += [] if name.startswith("model-") else [name]
    models = {f"model-{model.name}" for model in graph.models if model.register_as}
    assert models <= reached
    assert {*graph.experts, "stage1", "stage2", "stage3", "evaluate-chat"} <= reached
    assert not any(schedule["active"] for d in deployments for schedule in d.get("schedules", []))


def test_of_perplexity_less_is_better() -> None:
    risen, fallen = (row(difference) | {"lower_is_better": True} for difference in (10.0, -10.0))
    assert champion_refusals(SOUND, Against("1", 2.5, [risen]), STRICT)
    assert champion_refusals(SOUND, Against("1", 2.5, [fallen]), STRICT) == []
