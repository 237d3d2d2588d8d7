"""Counts of the real code on meta tensors: their budgets, and the formulas that stand in for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openba.accounting.counts import count_model, share_of
from openba.accounting.flops import forward_flops
from openba.accounting.fusion import FusionCounter
from openba.accounting.memory import activation_bytes
from openba.accounting.operations import OperationCounter
from openba.config import CONFIGS, load
from openba.model.blocks import FullAttention
from openba.model.model import OpenBAModel
from openba.model.rows import Rows, first
from openba.recipes.model import ModelRecipe

PAPER = load(CONFIGS / "model" / "openba-15b.yaml", ModelRecipe)
META = torch.device("meta")


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize(
    "change",
    [{}, {"sandwich": False}, {"dropout": 0.0}, {"d_model": 2048, "ffn": 6144, "num_heads": 16}],
    ids=str,
)
def test_the_memory_plan_is_what_autograd_saves(change: dict[str, Any], ranks: int) -> None:
    """Within 5 %, block by block; three rows, so that nothing depends on one length."""
    model = PAPER.model_copy(update=change)
    source, target = (430, 520, 380), (200, 90, 310)
    counted = count_model(share_of(model.architecture(1000), ranks), source, target)

    def held(encoder_layers: int, decoder_layers: int) -> int:
        stacks = model.model_copy(update={"encoder_layers": encoder_layers, "decoder_layers": decoder_layers})
        return activation_bytes(stacks, sum(source), sum(target), tensor_parallel=ranks)

    assert held(2, 1) - held(1, 1) == pytest.approx(counted.encoder_block.saved_bytes, rel=0.05)
    assert held(1, 2) - held(1, 1) == pytest.approx(counted.decoder_block.saved_bytes, rel=0.05)


def test_products_are_the_formulas_flops() -> None:
    source, target = (430, 380), (200, 310)
    counted = count_model(PAPER.architecture(1000), source, target)
    rows = zip(source, target, strict=True)
    by_row = [forward_flops(PAPER, 1000, s, t) for s, t in rows]
    width = (
        4 * PAPER.num_heads * PAPER.kv_channels
    )  # attention's scores and values are no matrix products here
    pairs = {
        "encoder": sum(s * s for s in source),
        "decoder": sum(t * t + s * t for s, t in zip(source, target, strict=True)),
    }
    for name, layers, part in (
        ("encoder", PAPER.encoder_layers, counted.encoder_block),
        ("decoder", PAPER.decoder_layers, counted.decoder_block),
    ):
        forward = sum(row[name] for row in by_row) / layers - width * pairs[name]
        assert sum(product.flops for product in part.products) == pytest.approx(3 * forward)


def decoder_block(rows: int) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The 15B model's decoder block on meta, and its inputs for so many rows of 430 + 200 tokens."""
    with META:
        model = OpenBAModel(PAPER.architecture(1000)).bfloat16()
    layouts = [Rows.ragged(first(torch.tensor([length] * rows), 500)).to(META) for length in (430, 200)]
    hidden, encoded = (
        torch.zeros(rows * length, 4096, dtype=torch.bfloat16, device=META, requires_grad=True)
        for length in (200, 430)
    )
    angles = torch.zeros(2, rows * 200, 1, 64, device=META)
    attention = FullAttention(layouts[1], encoded, layouts[0], dropout=0.1)
    return model.decoder.block[0], (hidden, angles, 0, attention)


def test_launches_and_bytes_of_a_decoder_block_stay_in_their_budget() -> None:
    """21 packed rows, forward and backward; a call of attention a row took 213 launches."""
    block, inputs = decoder_block(21)
    with OperationCounter() as eager:
        output = block(*inputs)
        output.backward(torch.zeros_like(output))
    fused = FusionCounter()
    block.compile(backend=fused, fullgraph=True)
    output = block(*inputs)
    output.backward(torch.zeros_like(output))
    assert eager.launches <= 90
    assert fused.fused.launches + fused.extern_launches <= 44
    assert fused.extern_launches == eager.parts["product"].launches + eager.parts["attention"].launches
    assert fused.fused.bytes < 0.5 * eager.parts["other"].bytes
