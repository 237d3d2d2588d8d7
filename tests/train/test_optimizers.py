"""Optimisers: what each trains, how it resumes (`test_checkpoint.py`), and where one is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from openba.accounting.memory import checkpoint_bytes, state_bytes
from openba.config import CONFIGS, load
from openba.errors import UserError
from openba.recipes.checks import check_training
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import OptimRecipe, TrainRecipe


def test_muon_orthogonalises_every_matrix_of_the_blocks_and_nothing_else(runs: Any) -> None:
    """A matrix that two workers share is done by both (DeepSpeed issue 8441: none was, without a word)."""
    facts = runs.facts["muon-updates"]
    matrices = Counter(map(tuple, facts["matrices"]))
    updated = Counter(map(tuple, facts["updated"]))
    assert updated >= matrices
    assert updated.keys() == matrices.keys()
    assert updated.total() <= matrices.total() + 1, "one cut between two workers"
    assert "shared_embedding.weight" in facts["others"]
    assert all("embedding" in name or "norm" in name or "bias" in name for name in facts["others"])


def test_muon_learns(runs: Any) -> None:
    facts = runs.facts["muon-learns"]
    assert facts["heldout_loss"] < facts["heldout"][0]["loss"] - 0.1
    assert facts["skipped_steps"] == 0


def test_muon_keeps_one_moment_of_a_matrix() -> None:
    adam = state_bytes(1000, zero_stage=0, data_parallel=1)
    muon = state_bytes(1000, zero_stage=0, data_parallel=1, muon_parameters=600)
    assert adam["total"] - muon["total"] == 4 * 600
    assert checkpoint_bytes(1000) - checkpoint_bytes(1000, muon_parameters=600) == 4 * 600


def test_a_recipe_without_muon_keeps_its_fingerprint() -> None:
    assert "muon" not in OptimRecipe(lr=1e-3).model_dump(mode="json")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("train.precision", {"precision": "fp32"}),
        ("runtime.train.zero_stage", {"zero_stage": 2}),
        ("runtime.tensor_parallel", {"tensor_parallel": 2}),
        ("train.adapter", {"adapter": {"kind": "lora"}}),
    ],
)
def test_muon_is_refused_where_deepspeed_does_something_else(key: str, change: dict[str, Any]) -> None:
    train = {**change, "precision": change.get("precision", "bf16")}
    zero_stage = train.pop("zero_stage", 1)
    tensor_parallel = train.pop("tensor_parallel", 1)
    recipe = load(CONFIGS / "pretrain" / "finetune.yaml", TrainRecipe).model_dump(mode="json")
    recipe["optim"]["muon"] = {"lr": 0.02}
    runtime = load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime).model_dump(mode="json")
    runtime["train"]["zero_stage"] = zero_stage
    runtime["tensor_parallel"] = tensor_parallel
    with pytest.raises(UserError, match=rf"^{key}: "):
        check_training(TrainRecipe.model_validate(recipe | train), PipelineRuntime.model_validate(runtime))


def test_muon_with_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="lr is 0"):
        OptimRecipe.model_validate({"lr": 0.0, "muon": {"lr": 0.02}})
