"""DeepSpeed under one worker or two: as plain torch, whatever the runtime; a bad step changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openba.config import CONFIGS, load
from openba.errors import UserError
from openba.model.model import OpenBAModel
from openba.recipes.checks import accumulation_steps
from openba.recipes.model import ModelRecipe
from openba.recipes.runtime import PipelineRuntime, TrainRuntime
from openba.recipes.train import TrainRecipe, TrainStep
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import TrainingBatches
from openba.train.engine import deepspeed_config
from openba.train.objectives import training_samples
from openba.train.schedules import learning_rate
from openba.train.state import step_counter


@pytest.mark.parametrize("run", ["padded", "one"])
def test_workers_and_micro_batches_change_nothing(runs: Any, run: str) -> None:
    assert len(runs.losses("reference")) == 4
    assert runs.losses(run) == pytest.approx(runs.losses("reference"), abs=1e-5)
    expected, found = runs.weights("reference"), runs.weights(run)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    norms = [[row["gradient_norm"] for row in runs.rows(name)] for name in ("reference", run)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    counts = [[(row["tokens"], row["targets"]) for row in runs.rows(name)] for name in ("reference", run)]
    assert counts[0] == counts[1]


def test_deepspeed_does_what_plain_torch_does(runs: Any, mixture_folder: Path, tokenizer: Tokenizer) -> None:
    step = TrainStep.model_validate(runs.job("x")["recipe"])
    train, optim = step.train, step.train.optim
    batches = TrainingBatches(
        training_samples(train, mixture_folder, "stage1", tokenizer), train, tokenizer.pad, tokenizer.size
    )
    torch.manual_seed(train.seed)
    model = OpenBAModel(step.model.architecture(tokenizer.size))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for index, row in enumerate(runs.rows("reference")):
        (batch,) = batches.micro(index, 0, 1, 8)
        loss = model.loss(batch.encoder_ids, batch.mask, batch.decoder_ids, batch.labels) / batch.targets
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, index, 4)
        optimizer.step()
        assert (row["loss"], row["gradient_norm"], row["lr"]) == pytest.approx(
            (loss.item(), norm.item(), learning_rate(optim, index, 4)), rel=1e-4
        )
    for name, tensor in runs.weights("reference").items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-5, rtol=0)


def test_it_learns(runs: Any) -> None:
    losses = runs.losses("reference")
    assert losses[-1] < losses[0] - 0.05


def test_a_step_one_worker_finds_bad_is_skipped_on_all(runs: Any) -> None:
    for run in ("skip", "skip-zero2"):
        facts = runs.facts[run]
        assert facts["applied"] == [True, False, True]
        assert all(len(set(ranks)) == 1 for ranks in facts["with_skip"])  # the ranks agree all the time
        start, first, skipped, third = (ranks[0] for ranks in facts["with_skip"])
        assert start != first
        assert skipped == first
        # As if the skipped batch had never been: no trace of it in gradients or moments.
        assert third != skipped
        assert third == facts["without"][2][0]


def test_a_stage_whose_steps_are_all_skipped_keeps_its_weights(runs: Any) -> None:
    rows = runs.rows("all-skipped")
    assert [row["skipped"] for row in rows] == [True] * 2
    assert all(8 < row["loss"] < 9 for row in rows)
    assert runs.facts["all-skipped"]["skipped_steps"] == 2
    torch.manual_seed(1234)
    recipe = ModelRecipe.model_validate(runs.job("x")["recipe"]["model"])
    initial = OpenBAModel(recipe.architecture(4103)).bfloat16().state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in runs.weights("all-skipped").items())
    assert not any(row["skipped"] for row in runs.rows("reference"))


def test_zero_three_runs_with_an_uneven_number_of_held_out_samples(runs: Any) -> None:
    facts = runs.facts["zero3"]
    assert (6000 // 64) % 2  # the second worker has one sample fewer
    assert facts["heldout_loss"] < facts["heldout"][0]["loss"]
    assert facts["parameters"] == runs.facts["reference"]["parameters"]
    assert sum(tensor.numel() for tensor in runs.weights("zero3").values()) == facts["parameters"]


def test_a_batch_the_workers_cannot_share_is_refused(runs: Any) -> None:
    # They would wait for each other for ever.
    assert "train.workers: 2 data-parallel workers cannot share a batch of 5" in runs.facts["uneven"]["error"]


@pytest.mark.parametrize(
    ("stage", "micro", "accumulation"), [("stage1", 4, 32), ("stage2", 16, 2), ("stage3", 5, 7)]
)
def test_the_batch_triangle_is_resolved(stage: str, micro: int, accumulation: int) -> None:
    recipe = load(CONFIGS / "pretrain" / f"{stage}.yaml", TrainRecipe)
    runtime = TrainRuntime(workers=32, micro_batch=micro, checkpoint_every=1)
    config = deepspeed_config(recipe, runtime, 32)
    assert accumulation_steps(recipe, runtime, 32) == config["gradient_accumulation_steps"] == accumulation
    assert config["train_batch_size"] == 32 * micro * accumulation
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert "auto" not in str(config)
    with pytest.raises(UserError, match="cannot share"):
        deepspeed_config(recipe, runtime, 33)


def test_fp16_scales_as_the_release_did() -> None:
    recipe = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe, ["precision=fp16"])
    runtime = TrainRuntime(workers=1, micro_batch=1, checkpoint_every=1)
    fp16 = deepspeed_config(recipe, runtime, 1)["fp16"]
    assert (fp16["initial_scale_power"], fp16["loss_scale_window"], fp16["hysteresis"]) == (32, 1000, 2)
    assert deepspeed_config(recipe, runtime, 1)["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("name", "ranks_of_a_weight"),
    [("reduced-zero1", 1), ("reduced-zero2", 1), ("reduced-zero3", 1), ("reduced-tp2", 2)],
)
def test_gradients_of_bf16_cross_workers_in_fp32(runs: Any, name: str, ranks_of_a_weight: int) -> None:
    """A sum over workers in bf16 would lose up to 16 of the 24 bits of a fp32 gradient."""
    reductions = runs.facts[name]
    parameters = runs.facts["reference"]["parameters"]
    assert sum(count for _, count in reductions) >= parameters / ranks_of_a_weight
    assert {dtype for dtype, _ in reductions} == {"torch.float32"}


def test_the_deterministic_mode_changes_no_bit_on_a_cpu(runs: Any) -> None:
    assert runs.model_bytes("deterministic") == runs.model_bytes("undisturbed")


@pytest.mark.parametrize(("is_fused", "device"), [(True, "meta"), (False, "cpu")])
def test_adam_finds_its_count_of_steps_where_its_kernel_looks(is_fused: bool, device: str) -> None:
    counter = step_counter(3, torch.zeros(4, device="meta"), is_fused)
    assert (counter.device.type, counter.dtype, counter.shape) == (device, torch.float32, ())


def test_a_fused_optimizer_goes_on_from_a_restored_count() -> None:
    """torch refuses a count that lies elsewhere than its kernel's."""
    weight = torch.nn.Parameter(torch.ones(4))
    adam = torch.optim.AdamW([weight], fused=True)
    moments = {name: torch.zeros(4) for name in ("exp_avg", "exp_avg_sq")}
    adam.state[weight] = {**moments, "step": step_counter(7, weight, is_fused=True)}
    weight.grad = torch.ones(4)
    adam.step()
    assert float(adam.state[weight]["step"]) == 8


def test_nothing_waits_for_the_device_to_measure_a_throughput() -> None:
    recipe = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe)
    runtime = TrainRuntime(workers=1, micro_batch=1, checkpoint_every=1)
    assert deepspeed_config(recipe, runtime, 1)["timers"] == {"throughput": {"enabled": False}}


def test_a_gradient_is_added_to_its_sum_in_one_pass(runs: Any) -> None:
    """It reads 2 + 4 bytes a parameter and micro-batch and writes 4; DeepSpeed alone moves 26."""
    assert runs.facts["gradient-bytes"] == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "stage", "overlaps"), [("cuda", 1, False), ("cuda", 2, True), ("cpu", 2, False)]
)
def test_gradients_cross_workers_beside_the_backward_pass_on_cuda(
    kind: Any, stage: Any, overlaps: bool
) -> None:
    recipe = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe)
    runtime = TrainRuntime(workers=8, micro_batch=1, checkpoint_every=1, zero_stage=stage)
    assert deepspeed_config(recipe, runtime, 8, kind)["zero_optimization"]["overlap_comm"] is overlaps


def test_a_cpu_compiles_no_blocks() -> None:
    with pytest.raises(UserError, match=r"train.compile is for device.kind cuda"):
        load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime, ["train.compile=true"])
