"""Memory plan of the paper's 15B on its cluster, in decimal GB.

State was worked out by hand; activations are what `test_counts.py` finds that autograd saves.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.accounting.flops import parameters
from openba.accounting.memory import activation_bytes, checkpoint_bytes, loss_bytes, state_bytes
from openba.recipes.model import ModelRecipe

MODEL = ModelRecipe(
    d_model=4096, num_heads=40, kv_channels=128, ffn=16384, encoder_layers=12, decoder_layers=36
)
VOCAB = 250_368
COUNT = sum(parameters(MODEL, VOCAB).values())
GB = 1e9


@pytest.mark.parametrize(
    ("devices", "tensor_parallel", "gigabytes"),
    [
        (32, 1, (233, 63.7, 35.5, 7.3)),
        (32, 2, (116.5, 34.6, 20.9, 7.3)),
        (32, 4, (58.3, 20.0, 13.7, 7.3)),
        (32, 8, (29.1, 12.7, 10.0, 7.3)),
        (8, 1, (233, 80.1, 54.6, 29.1)),
        (8, 2, (116.5, 51.0, 40.1, 29.1)),
        (8, 8, (29.1, 29.1, 29.1, 29.1)),
    ],
)
def test_state_by_zero_stage(devices: int, tensor_parallel: int, gigabytes: tuple[float, ...]) -> None:
    for stage, expected in enumerate(gigabytes):
        state = state_bytes(
            COUNT,
            zero_stage=stage,
            data_parallel=devices // tensor_parallel,
            tensor_parallel=tensor_parallel,
        )
        assert state["total"] / GB == pytest.approx(expected, abs=0.12)
        assert state["total"] == state["parameters"] + state["gradients"] + state["optimizer"]


@pytest.mark.parametrize(("stage", "gigabytes"), enumerate((262, 92.9, 36.4)))
def test_state_with_fp32_gradients(stage: int, gigabytes: float) -> None:
    state = state_bytes(COUNT, zero_stage=stage, data_parallel=32, fp32_gradients=True)
    assert state["total"] / GB == pytest.approx(gigabytes, rel=2e-3)


def test_fp32_keeps_no_second_copy_of_the_weights() -> None:
    state = state_bytes(1000, zero_stage=0, data_parallel=1, precision="fp32")
    assert state == {"parameters": 4000, "gradients": 4000, "optimizer": 8000, "total": 16_000}


@given(
    stage=st.sampled_from([0, 1, 2]),
    data_parallel=st.integers(1, 64),
    count=st.integers(1, 10**9),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
)
def test_a_higher_stage_never_needs_more(stage: int, data_parallel: int, count: int, precision: str) -> None:
    lower, higher = (
        state_bytes(count, zero_stage=z, data_parallel=data_parallel, precision=precision)["total"]
        for z in (stage, stage + 1)
    )
    assert higher < lower if data_parallel > 1 and count > 1 else higher <= lower


STAGES = {"I": (570, 380), "II": (1024, 1024), "III": (1024, 256)}


@pytest.mark.parametrize(
    ("stage", "options", "gigabytes"),
    [
        ("I", {}, 4.94),
        ("I", {"tensor_parallel": 2}, 3.06),
        ("I", {"tensor_parallel": 4}, 2.1),
        ("I", {"recompute": "none"}, 8.32),
        ("I", {"recompute": "full"}, 0.17),
        ("II", {}, 11.78),
        ("II", {"tensor_parallel": 2}, 7.35),
        ("II", {"tensor_parallel": 4}, 5.13),
        ("II", {"recompute": "none"}, 29.39),
        ("II", {"recompute": "full"}, 0.40),
        ("III", {}, 5.27),
        ("III", {"tensor_parallel": 2}, 3.19),
        ("III", {"tensor_parallel": 4}, 2.1),
        ("III", {"recompute": "none"}, 10.14),
        ("III", {"recompute": "full"}, 0.18),
    ],
)
def test_activations_of_one_sequence(stage: str, options: dict, gigabytes: float) -> None:
    held = activation_bytes(MODEL, *STAGES[stage], **options)
    assert held / GB == pytest.approx(gigabytes, abs=0.05)
    assert activation_bytes(MODEL, *STAGES[stage], micro_batch=16, **options) == pytest.approx(16 * held)


def test_paper_micro_batch_needs_recompute_without_fused_attention() -> None:
    """Paper section 3.4: micro-batch 16 at tensor parallel 4 fits 80 GB only with attention recompute."""
    state = state_bytes(COUNT, zero_stage=1, data_parallel=8, tensor_parallel=4, fp32_gradients=True)["total"]
    shape = {"micro_batch": 16, "tensor_parallel": 4}
    loss = loss_bytes(MODEL, VOCAB, 380, device="cuda", **shape)
    assert state + loss + activation_bytes(MODEL, 570, 380, **shape, recompute="attention") < 80 * GB
    whole = activation_bytes(MODEL, 570, 380, **shape, recompute="none")
    assert whole / GB == pytest.approx(47.4, abs=0.1)


def test_a_checkpoint_of_15b_is_175_gb() -> None:
    assert checkpoint_bytes(COUNT) / GB == pytest.approx(174.8, abs=0.1)
    assert checkpoint_bytes(1000) == 12_000
