"""Adapters under DeepSpeed: frozen weights stay, a stopped run goes on bitwise, what is written is small."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from openba.model.adapter_base import digest_of_weights
from openba.model.loading import load_model
from openba.recipes.adapter import adapter_parameters
from openba.recipes.train import TrainStep
from tests.train.conftest import ADAPTED


@pytest.mark.parametrize("name", ADAPTED)
def test_a_stopped_run_goes_on_bitwise(runs: Any, name: str) -> None:
    assert runs.facts[f"{name}-stopped"]["resumed"] == 1
    for folder in ("model", "steps/2"):
        files = [runs.root / run / folder / "adapter_model.safetensors" for run in (name, f"{name}-stopped")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ADAPTED)
def test_only_the_adapter_is_trained_saved_and_exported(runs: Any, name: str) -> None:
    step = TrainStep.model_validate(
        runs.job("x", adapter={"kind": name.partition("-")[0], "rank": 4})["recipe"]
    )
    assert step.train.adapter is not None
    trained = adapter_parameters(step.model, step.train.adapter)
    facts = runs.facts[name]
    assert facts["trained_parameters"] == trained < 0.2 * facts["parameters"]
    tensors = load_file(runs.root / name / "model" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == trained
    assert not (runs.root / name / "model" / "model.safetensors").exists()
    base = json.loads((runs.root / name / "model" / "base.json").read_text())
    assert base["digest"] == digest_of_weights(runs.root / "reference" / "model")
    (newest,) = sorted((runs.root / name / "checkpoints").glob("step-*"))[-1:]
    shares = [load_file(path) for path in newest.glob("rank-*.safetensors")]
    weights = {key: t for share in shares for key, t in share.items() if key.startswith("weight/")}
    assert sum(tensor.numel() for tensor in weights.values()) == trained


@pytest.mark.parametrize("name", ADAPTED)
def test_the_adapter_learns_beside_the_weights_of_its_start(runs: Any, name: str) -> None:
    heldout = runs.facts[name]["heldout"]
    assert heldout[-1]["loss"] < heldout[0]["loss"]
    assert heldout[0]["loss"] == pytest.approx(runs.facts["started"]["heldout"][0]["loss"], rel=1e-2)
    adapted, _ = load_model(runs.root / name / "model")
    start, _ = load_model(runs.root / "reference" / "model")
    changed = [
        key for key, tensor in adapted.state_dict().items()
        if not torch.equal(tensor.float(), start.state_dict()[key].to(tensor.dtype).float())
    ]  # fmt: skip
    assert changed
    assert all(key.split(".")[-2] in ("qkv", "q", "kv", "o", "fc_in", "fc_out") for key in changed)
