"""The plan of the paper's own Stage I on the paper's own cluster."""

import pytest

from openba.accounting.flops import train_flops
from openba.accounting.plan import plan_training
from openba.errors import UserError
from openba.recipes.model import ModelRecipe
from openba.recipes.runtime import DeviceRuntime, PipelineRuntime, TrainRuntime
from openba.recipes.train import OptimRecipe, PrefixRecipe, TrainRecipe, TrainStep

STEP = TrainStep(
    model=ModelRecipe(
        d_model=4096, num_heads=40, kv_channels=128, ffn=16384, encoder_layers=12, decoder_layers=36
    ),
    train=TrainRecipe(
        data=PrefixRecipe(objective="prefix", length=750),
        encoder_length=570,
        decoder_length=380,
        batch=4096,
        budget="300B tokens",
        optim=OptimRecipe(lr=1e-4),
        evaluate_every=1000,
    ),
)


def cluster(zero_stage: int, tensor_parallel: int, micro_batch: int = 4) -> PipelineRuntime:
    return PipelineRuntime(
        device=DeviceRuntime(
            name="A100", kind="cuda", peak_tflops=312, watts=400, memory=80 * 10**9, utilisation=0.294
        ),
        devices=32,
        tensor_parallel=tensor_parallel,
        train=TrainRuntime(workers=32, micro_batch=micro_batch, zero_stage=zero_stage, checkpoint_every=500),
    )


def test_stage_one_of_the_paper() -> None:
    plan = plan_training(STEP, cluster(1, 4), vocab=250_368)
    assert plan["steps"] == 77_098  # 77,097.04, rounded up
    assert plan["tokens"] == pytest.approx(300e9, rel=1e-4)
    assert plan["flops"] == pytest.approx(1.2305e22, rel=1e-3)
    # 159.6 PFLOP a step at 91.7 TFLOP/s on 32 GPUs: 54.4 s.
    assert plan["wall_hours"] * 3600 / plan["steps"] == pytest.approx(54.4, abs=0.1)
    assert plan["gpu_hours"] == pytest.approx(32 * plan["wall_hours"])
    assert plan["kwh"] == pytest.approx(plan["gpu_hours"] * 0.44)
    assert plan["tco2eq"] == pytest.approx(plan["kwh"] / 1000 * 0.385)
    # Stage II's form has one length; nothing is computed again, but fused attention's scores are.
    real, padded = (train_flops(STEP.model, 250_368, *lengths) for lengths in ((378, 377), (570, 380)))
    assert plan["flops_useful"] / plan["flops"] == pytest.approx(real / padded)
    assert 1 < plan["flops_hardware"] / plan["flops_useful"] < 1.01
    assert 1 < plan["flops_hardware_padded"] / plan["flops"] < 1.01
    assert plan["checkpoint_bytes"] == 12 * plan["parameters"]


def test_memory_marks_the_chosen_stage_and_what_fits() -> None:
    plan = plan_training(STEP, cluster(2, 1), vocab=250_368)
    assert [row["zero_stage"] for row in plan["memory"]] == [0, 1, 2, 3]
    assert [row["chosen"] for row in plan["memory"]] == [False, False, True, False]
    assert [row["fits"] for row in plan["memory"]] == [False, False, True, True]
    assert plan["fits"]
    for row in plan["memory"]:
        assert row["total"] == row["state"] + row["activations"] + row["logits"]
    # bf16 gradients are accumulated in fp32: 92.9 GB of state at stage 1 without tensor parallelism.
    assert plan["memory"][1]["state"] == pytest.approx(92.9e9, rel=1e-3)
    assert not plan_training(STEP, cluster(1, 1), vocab=250_368)["fits"]


@pytest.mark.parametrize(
    ("workers", "message"), [(64, "64 workers need a device each"), (12, "cannot share a batch")]
)
def test_a_runtime_that_the_run_would_refuse_is_refused(workers: int, message: str) -> None:
    runtime = cluster(1, 1)
    train = runtime.train.model_copy(update={"workers": workers})
    with pytest.raises(UserError, match=message):
        plan_training(STEP, runtime.model_copy(update={"train": train}), vocab=250_368)


def test_hours_follow_the_workers_not_the_devices() -> None:
    runtime = cluster(1, 1)
    train = runtime.train.model_copy(update={"workers": 8})
    eight = plan_training(STEP, runtime.model_copy(update={"train": train}), vocab=250_368)
    assert eight["wall_hours"] == pytest.approx(4 * plan_training(STEP, runtime, vocab=250_368)["wall_hours"])


def test_workers_must_split_into_tensor_parallel_groups() -> None:
    with pytest.raises(UserError, match=r"train.workers: 32 is not a multiple of runtime.tensor_parallel 3"):
        plan_training(STEP, cluster(1, 3), vocab=250_368)
