"""What the backward pass computes again: equal gradients, dropout and all, and less memory in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe

RECIPE = ModelRecipe(
    d_model=64, num_heads=4, kv_channels=16, ffn=192, ffn_multiple=16, encoder_layers=2, decoder_layers=4,
    positions=128, dropout=0.1,
)  # fmt: skip
MODES = ("none", "attention", "selective", "full")


def passes(mode: str, stream: int | None = None) -> tuple[Tensor, list[Tensor], int]:
    """Loss, gradients, and the bytes that the forward pass leaves behind."""
    torch.manual_seed(0)
    model = OpenBAModel(RECIPE.architecture(128))
    model.recompute(mode)
    model.share_heads(stream)
    ids = torch.randint(3, 128, (2, 96))
    mask = torch.arange(96) < torch.tensor([[96], [70]])
    torch.manual_seed(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        loss = model.loss(ids, mask, ids, ids.masked_fill(~mask, -100))
    held = sum(event.self_cpu_memory_usage for event in watched.events())
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], held


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[Tensor, list[Tensor], int]]:
    return {mode: passes(mode) for mode in MODES}


@pytest.mark.parametrize("mode", MODES[1:])
def test_gradients_are_equal_bit_by_bit(
    found: dict[str, tuple[Tensor, list[Tensor], int]], mode: str
) -> None:
    assert torch.equal(found[mode][0], found["none"][0])
    assert len(found[mode][1]) == len(found["none"][1])
    assert all(torch.equal(a, b) for a, b in zip(found[mode][1], found["none"][1], strict=True))


def test_each_mode_keeps_less_than_the_one_before(
    found: dict[str, tuple[Tensor, list[Tensor], int]],
) -> None:
    held = [found[mode][2] for mode in MODES]
    assert held == sorted(held, reverse=True)
    assert held[3] < held[2] < 0.8 * held[0]


def test_recomputed_attention_draws_its_ranks_numbers_again() -> None:
    for mode in ("attention", "full"):
        plain, again = passes("none", stream=1), passes(mode, stream=1)
        assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))
