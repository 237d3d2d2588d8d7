"""Shards of an evaluation on a real local Ray: the bytes of one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import labelled
from openba.errors import UserError
from openba.evaluate import run, shards
from openba.graph import EVALUATE, Pipeline, find_pipeline
from openba.model.files import save_model
from openba.model.model import OpenBAModel
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer
from tasks import evaluate
from tasks.places import kind_of

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=96, init_std=0.3,
)  # fmt: skip
CHOSEN = {
    "review-sentiment": ["task.source.limit=700", "task.limit=600", "items=50"],
    "translate-zh-en": ["task.limit=300", "items=20", "max_new_tokens=6"],
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'tasks'}")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                 object_store_memory=80 * 2**20, logging_level="ERROR")  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def inputs(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(1)
    torch.set_num_threads(1)  # as Ray's workers have
    tokenizer = Tokenizer.load(tokenizer_folder)
    model = OpenBAModel(SHAPE.architecture(tokenizer.size))
    save_model(root / "stage" / "model", model.state_dict(), model.architecture, tokenizer)
    for name, recipe in benchmarks().items():
        (root / name).mkdir()
        labelled.build(Build(root / name, TaskStep(name=name, task=recipe.task), {}))
    return {"model": root / "stage", **{f"task-{name}": root / name for name in CHOSEN}}


def benchmarks() -> dict[str, BenchmarkRecipe]:
    return {
        name: load(CONFIGS / "benchmark" / f"{name}.yaml", BenchmarkRecipe, overrides)
        for name, overrides in CHOSEN.items()
    }


def built(inputs: dict[str, Path], out: Path, mapper: shards.ShardMapper) -> tuple[object, dict[str, bytes]]:
    out.mkdir(exist_ok=True)
    recipe = EvaluateStep(benchmarks=benchmarks(), encoder_length=96)
    facts = run.build(Build(out, recipe, inputs), mapper)
    return facts, {path.name: path.read_bytes() for path in out.iterdir()}


class Dying(evaluate._RayWorker):
    """A worker that is killed, as the kernel does without memory, when it first comes by job 1."""

    def __call__(self, batch):  # type: ignore[no-untyped-def]
        out = self.jobs[0][0].out
        places = batch["id"].to_pylist()
        with out.with_name(f"{out.name}.log").open("a") as file:
            file.writelines(f"{place}\n" for place in places)
        if places == [1] and not (marker := out.with_name(f"{out.name}.killed")).exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def test_one_process_and_shards_on_ray_give_the_same_bytes_and_a_killed_worker_its_own_shard_again(
    cluster: None, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = built(inputs, tmp_path / "whole", shards.map_in_process)  # one shard a benchmark
    assert set(whole[1]) == {f"{name}.parquet" for name in CHOSEN}
    monkeypatch.setattr(evaluate, "_RayWorker", Dying)
    told: list[int] = []

    def mapper(model: Path, jobs: list[shards.Shard]) -> Iterator[tuple[int, str]]:
        for place, error in evaluate.on_ray(2, False)(model, jobs):
            told.append(place)
            yield place, error

    monkeypatch.setattr(shards, "SHARD_SIZE", 16)
    sharded = built(inputs, tmp_path / "sharded", mapper)
    assert sharded == whole
    started = [int(line) for line in (tmp_path / "sharded.log").read_text().split()]
    assert sorted(told) == list(range(len(told)))
    assert len(told) > 3
    assert sorted(started) == sorted([*told, 1])  # its shard twice, all others once


def test_a_mistake_comes_back_as_it_was_told(cluster: None, inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = load(
        CONFIGS / "benchmark" / "review-sentiment.yaml",
        BenchmarkRecipe,
        [*CHOSEN["review-sentiment"], "method=letters"],
    )
    step = EvaluateStep(benchmarks={"review-sentiment": recipe}, encoder_length=96)
    with pytest.raises(UserError, match=r"benchmark review-sentiment: method 'letters': .* is no token"):
        run.build(Build(tmp_path, step, inputs), evaluate.on_ray(2, False))


def test_the_runtime_says_how_many_workers_answer() -> None:
    def function(*overrides: str) -> str:
        graph = Pipeline(find_pipeline("tiny"), list(overrides))
        step = graph.step("evaluate-stage3")
        kind = kind_of(step, graph.config.runtime)
        assert (kind.version, kind.place) == (EVALUATE.version, "job")
        return kind.function

    assert function() == "openba.evaluate.run:build"
    assert function("runtime.evaluate.workers=2") == "tasks.evaluate:build"


def test_files_hold_the_items_in_their_order(inputs: dict[str, Path], tmp_path: Path) -> None:
    built(inputs, tmp_path / "out", shards.map_in_process)
    for name, recipe in benchmarks().items():
        wanted = pq.read_table(inputs[f"task-{name}"] / "heldout.parquet")["id"].to_pylist()[: recipe.items]
        assert pq.read_table(tmp_path / "out" / f"{name}.parquet")["id"].to_pylist() == wanted
