"""The one dial of a speedrun: what follows from it, and what it leaves alone."""

from __future__ import annotations

import pytest

from openba.accounting.flops import parameters
from openba.artifacts import Store
from openba.config import ConfigError
from openba.graph import Pipeline, find_pipeline
from openba.plan import plan
from openba.recipes.dial import REFERENCE_RATE, dialled
from openba.recipes.train import TrainStep


def graph(*settings: str) -> Pipeline:
    return Pipeline(find_pipeline("speedrun"), list(settings))


def train(pipeline: Pipeline, name: str) -> TrainStep:
    recipe = pipeline.step(name).recipe
    assert isinstance(recipe, TrainStep)
    return recipe


@pytest.mark.parametrize("size", [4, 12, 24])
def test_stage_one_has_twenty_tokens_for_each_parameter_of_the_layers(size: int) -> None:
    recipe = train(graph(f"size={size}"), "stage1")
    counted = parameters(recipe.model, 32_000)
    layers = sum(number for part, number in counted.items() if "embedding" not in part)
    tokens = recipe.train.steps * recipe.train.tokens_per_step
    assert tokens / layers == pytest.approx(20, rel=0.06)
    assert (recipe.model.decoder_layers, recipe.model.d_model) == (size, 64 * size)
    assert recipe.model.encoder_layers == round(size / 3)


def test_a_larger_size_costs_more_learns_at_a_lower_rate_and_in_larger_batches() -> None:
    small, large = graph("size=8"), graph("size=24")
    costs = [plan(each, Store("/nowhere", each.path))["total"] for each in (small, large)]
    assert costs[1]["money"] > 20 * costs[0]["money"] > 0
    rates, batches = zip(*((train(g, "stage1").train.optim.lr, train(g, "stage1").train.batch) for g in (small, large)), strict=True)  # fmt: skip  # noqa: E501
    assert rates[1] < rates[0] <= REFERENCE_RATE
    assert batches[1] > batches[0]


def test_what_set_or_the_pipelines_own_file_states_stays() -> None:
    stated = train(graph("size=8", "stages.stage1.optim.lr=1e-4", "model.encoder_layers=8"), "stage1")
    assert stated.train.optim.lr == 1e-4
    assert stated.model.encoder_layers == 8
    assert stated.model.decoder_layers == 8
    cpu = Pipeline(find_pipeline("speedrun-cpu"))
    assert train(cpu, "stage3").train.steps == 300  # of its own file
    assert (
        train(cpu, "stage1").train.batch == dialled(2, 0.6)["stages.stage1.batch"]
    )  # not of `tiny`, which it extends
    assert cpu.files.set_by("model.d_model") == "size"


def test_a_pipeline_without_size_is_as_its_files_say() -> None:
    tiny = Pipeline(find_pipeline("tiny"))
    assert tiny.config.size is None
    assert train(tiny, "stage1").model.d_model == 128


def test_a_target_that_nothing_scores_is_refused() -> None:
    with pytest.raises(ConfigError, match="target: no evaluation scores bleu of stage2 on flores-zh-en"):
        graph("target.step=stage2", "target.metric=bleu")


def test_a_speedrun_trains_no_expert() -> None:
    assert graph().experts == {}
    assert {"stage3", "evaluate-stage3", "contamination"} <= graph().steps.keys()
