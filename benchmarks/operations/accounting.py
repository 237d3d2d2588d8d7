"""Accounting against references: the paper's Table 5, and torch's FLOP counter on six encoder-decoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figure import Figure
from openba.accounting.carbon_table import ROWS, difference
from openba.accounting.flops import train_flops
from openba.model.model import OpenBAModel
from openba.recipes.architecture import Recompute
from openba.recipes.model import ModelRecipe

VOCABULARY_SIZE = 40
# `Any`: keyword arguments of `ModelRecipe`, which validates them.
BASE: dict[str, Any] = {"d_model": 48, "num_heads": 3, "kv_channels": 8, "ffn": 50, "ffn_multiple": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "1+1": {"encoder_layers": 1, "decoder_layers": 1},
    "1+3, as OpenBA": {"encoder_layers": 1, "decoder_layers": 3, "sandwich": True},
    "3+1, LayerNorm": {"encoder_layers": 3, "decoder_layers": 1, "norm": "layernorm"},
    "2+2, wide heads": {"encoder_layers": 2, "decoder_layers": 2, "num_heads": 5, "kv_channels": 16},
    "2+4, untied": {"encoder_layers": 2, "decoder_layers": 4, "tie_embeddings": False, "head_bias": True},
    "1+2, biases": {"encoder_layers": 1, "decoder_layers": 2, "attention_bias": True, "vocab_multiple": 8},
}
"""Name -> settings beyond `BASE`."""


def figures() -> Iterator[Figure]:
    """Yield exact figures; none of them measures time."""
    for row in ROWS:
        note = "; its hours do not give the printed MWh" if row.misprint else ""
        figure_name = f"Table 5, {row.model}: beyond rounding{note}"
        target = None if row.misprint else 0.005
        yield Figure(figure_name, difference(row), "", target, peer="paper Table 5")
    for name, shape in SHAPES.items():
        formula_flops, counted_flops = count_flops(ModelRecipe(**BASE | shape))
        ratio = formula_flops / counted_flops
        yield Figure(f"training FLOPs, {name}: ours / torch's", ratio, "", 1, peer="FlopCounterMode")
        if formula_flops != counted_flops:
            deviation = abs(formula_flops - counted_flops)
            yield Figure(f"training FLOPs, {name}: not equal by", deviation, "FLOP", 0)


def count_flops(
    recipe: ModelRecipe,
    batch_size: int = 2,
    source_length: int = 7,
    target_length: int = 5,
    recompute: Recompute = "none",
) -> tuple[int, int]:
    """Return FLOPs of forward and backward by our formula, and by torch's counter on the eager model."""
    model = OpenBAModel(recipe.architecture(VOCABULARY_SIZE))
    if recompute != "none":
        # In fp64, where products are as on a GPU. oneDNN's, for fp32 on a CPU, also repeat a block's last
        # one: a custom node knows only after its product what it saves, torch's own knows before it.
        model = model.double()
    model.recompute(recompute)
    encoder_ids = torch.ones(batch_size, source_length, dtype=torch.long)
    decoder_ids = torch.ones(batch_size, target_length, dtype=torch.long)
    mask = torch.ones_like(encoder_ids, dtype=torch.bool)
    # The CPU's fused attention is not in torch's counter; the math backend is, product by product.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(encoder_ids, mask, decoder_ids, decoder_ids).backward()
    formula_flops = batch_size * train_flops(recipe, VOCABULARY_SIZE, source_length, target_length)
    return formula_flops, counter.get_total_flops()
