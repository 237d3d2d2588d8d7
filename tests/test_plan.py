"""The plan: the paper's own totals, what is built already, and nothing touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from openba.artifacts import Build, Step, Store, materialize
from openba.data.store import TokenStore
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.json_types import JsonObject
from openba.plan import plan

MEASURED = "runtime.device.utilisation=0.294"
"""Share of the peak that the paper reached (docs/accounting.md)."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", tmp_path / "work")


def test_the_papers_pipeline_costs_what_the_paper_says(store: Store) -> None:
    found = plan(Pipeline(find_pipeline("paper"), [MEASURED]), store)
    stages = {row["name"]: row["training"] for row in found["steps"] if row["name"].startswith("stage")}
    assert list(stages) == ["stage1", "stage2", "stage3"]
    assert [stages[name]["steps"] for name in stages] == [77_098, 19_074, 30_518]
    assert [stages[name]["tokens"] for name in stages] == pytest.approx([300e9, 40e9, 40e9], rel=1e-3)
    assert stages["stage1"]["flops"] == pytest.approx(1.23e22, rel=2e-3)
    assert sum(stage["flops"] for stage in stages.values()) == pytest.approx(1.55e22, rel=2e-3)
    assert stages["stage1"]["flops_useful"] / stages["stage1"]["flops"] == pytest.approx(0.605, abs=1e-3)
    windows = {row["name"]: row["windows"] for row in found["steps"] if "windows" in row}
    assert windows["stage1"] == {
        "kind": "crossed", "count": None, "encoder_fill": pytest.approx(0.731, abs=1e-3),
        "decoder_fill": pytest.approx(0.538, abs=1e-3),
    }  # fmt: skip
    assert stages["stage3"]["flops_useful"] is None  # pairs, whose lengths are not known yet
    assert stages["stage1"]["parameters"] == pytest.approx(14.6e9, rel=5e-3)
    # 91.7 model TFLOP/s on each GPU (the paper's 120 count recomputation).
    hours = sum(stage["gpu_hours"] for stage in stages.values())
    assert hours == pytest.approx(1.55e22 / 91.7e12 / 3600, rel=2e-3)
    assert all(stage["fits"] and stage["prediction"] is None for stage in stages.values())
    totals = {
        part: sum(row["tokens"][part] for row in found["mixture"]) for part in ("stage1", "stage2", "heldout")
    }
    assert totals == {"stage1": 300 * 10**9, "stage2": 40 * 10**9, "heldout": 20 * 10**6}
    # Figure 1(a): 190B English, 190B Chinese and 20B code of 400B.
    shares = {row["group"]: row["share"] for row in found["mixture"]}
    chinese = sum(share for name, share in shares.items() if name.startswith("chinese-"))
    assert 400 * chinese == pytest.approx(190)
    assert (400 * shares["pile-english"], 400 * shares["pile-github"]) == pytest.approx((190, 20))
    assert (found["pipeline"], found["devices"]) == ("paper", 32)


def test_what_bounded_windows_fill_is_counted_once_the_mixture_is_built(
    store: Store, mixture_folder: Path
) -> None:
    graph = Pipeline(find_pipeline("tiny"), ["stages.stage1.data.windows=bounded"])

    def windows() -> dict[str, object]:
        (row,) = [row for row in plan(graph, store)["steps"] if row["name"] == "stage1"]
        assert row["training"]["flops_useful"] is None  # lengths are the documents'
        return row["windows"]

    assert windows() == {"kind": "bounded", "count": None, "encoder_fill": None, "decoder_fill": None}
    mixture = graph.steps["mixture"]

    def copy(step: Step, build: Build) -> JsonObject:
        """Stand in for the steps before the mixture, which the plan does not look at."""
        if step.name == "mixture":
            shutil.copytree(mixture_folder, build.out, dirs_exist_ok=True)
        return {"groups": {}}

    for step in mixture.walk():
        materialize(step, store, run_step=copy)
    built = windows()
    tokens = TokenStore(mixture_folder / "stage1")
    documents = np.diff(tokens.offsets)
    assert built["count"] == int((-(-documents // 128)).sum())
    crossed = Pipeline(find_pipeline("tiny"))
    (row,) = [row for row in plan(crossed, store)["steps"] if row["name"] == "stage1"]
    assert row["windows"]["count"] == len(tokens) // 128
    assert 0 < built["encoder_fill"] < row["windows"]["encoder_fill"]


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_totals_are_sums_over_all_trainings_and_it_is_json(store: Store, name: str) -> None:
    graph = Pipeline(find_pipeline(name))
    found = plan(graph, store)
    trainings = [row["training"] for row in found["steps"] if "training" in row]
    assert len(trainings) == 3 + len(graph.experts)
    assert found["total"].pop("money") is None  # no price, no cost
    for key, total in found["total"].items():
        assert total == pytest.approx(sum(training[key] for training in trainings))
    for training in trainings:
        assert training["wall_hours"] * training["workers"] == pytest.approx(training["gpu_hours"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_steps_stand_in_building_order_with_their_state(store: Store) -> None:
    graph = Pipeline(find_pipeline("tiny"))
    built = graph.step("source-python-reference")
    materialize(built, store)
    found = plan(graph, store)
    assert {row["name"] for row in found["steps"] if row["state"] == "hit"} == {built.name}
    assert {row["state"] for row in found["steps"]} == {"hit", "miss"}
    order = [row["name"] for row in found["steps"]]
    assert sorted(order) == sorted(graph.steps)
    assert {row["name"]: row["fingerprint"] for row in found["steps"]} == {
        s.name: s.fingerprint for s in graph.steps.values()
    }
    for step in graph.steps.values():
        assert all(order.index(parent.name) < order.index(step.name) for parent in step.inputs.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runtime.train.workers=64", "stage1: runtime.train.workers: 64 workers need a device each"),
        ("runtime.train.workers=30", "stage1: runtime.train.workers: 30 is not a multiple of"),
        ("runtime.tensor_parallel=3", "is not a multiple of runtime.tensor_parallel 3"),
        (
            "stages.stage2.batch=1022",
            "stage2: runtime.train.workers: 8 data-parallel workers cannot share a batch of 1022",
        ),
    ],
)
def test_the_plan_refuses_workers_that_the_run_would(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        Pipeline(find_pipeline("paper"), [override])
    assert "\n" not in str(told.value)


def test_fewer_workers_take_longer(store: Store) -> None:
    hours = [
        plan(Pipeline(find_pipeline("paper"), [f"runtime.train.workers={workers}", MEASURED]), store)[
            "total"
        ]["wall_hours"]
        for workers in (32, 8)
    ]
    assert hours[1] == pytest.approx(4 * hours[0])


def test_a_step_is_predicted_where_no_utilisation_is_stated(store: Store) -> None:
    found = plan(Pipeline(find_pipeline("paper")), store)
    for row in found["steps"]:
        if (training := row.get("training")) is None:
            continue
        predicted = training["prediction"]
        hours = training["steps"] * predicted["seconds"] * training["workers"] / 3600
        assert training["gpu_hours"] == pytest.approx(hours)
        assert 0.2 < predicted["useful_mfu"] < 0.6
        assert predicted["limit"] in {**predicted["micro_batch"], **predicted["once"]}


def test_planning_writes_nothing(store: Store, tmp_path: Path) -> None:
    plan(Pipeline(find_pipeline("tiny")), store)
    assert list(tmp_path.iterdir()) == []


def test_an_experts_worker_group_has_its_own_size() -> None:
    pipeline = Pipeline(find_pipeline("tiny"), ["runtime.train.expert_workers=1", "runtime.train.workers=2"])
    workers = {name: pipeline.runtime(pipeline.step(name)).train.workers for name in ("stage3", "chat")}
    assert workers == {"stage3": 2, "chat": 1}
    pipeline = Pipeline(find_pipeline("tiny"), ["runtime.train.expert_workers=null"])
    assert pipeline.runtime(pipeline.step("chat")).train.workers == 2
