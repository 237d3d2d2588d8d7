"""Accounting against what others say: the paper's Table 5, torch's FLOP counter on six encoder-decoders."""

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

VOCAB = 40
SHAPES: dict[str, dict[str, Any]] = {
    "1+1": {"encoder_layers": 1, "decoder_layers": 1},
    "1+3, as OpenBA": {"encoder_layers": 1, "decoder_layers": 3, "sandwich": True},
    "3+1, LayerNorm": {"encoder_layers": 3, "decoder_layers": 1, "norm": "layernorm"},
    "2+2, wide heads": {"encoder_layers": 2, "decoder_layers": 2, "num_heads": 5, "kv_channels": 16},
    "2+4, untied": {"encoder_layers": 2, "decoder_layers": 4, "tie_embeddings": False, "head_bias": True},
    "1+2, biases": {"encoder_layers": 1, "decoder_layers": 2, "attention_bias": True, "vocab_multiple": 8},
}
"""Differences from a width of 48, 3 heads of 8, an inner width of 50; lengths 7 and 5, two sequences."""


def figures() -> Iterator[Figure]:
    """Exact: no time in any of them."""
    for row in ROWS:
        note = "; its hours do not give the printed MWh" if row.misprint else ""
        target = None if row.misprint else 0.005
        yield Figure(
            f"Table 5, {row.model}: beyond rounding{note}", difference(row), "", target, peer="paper Table 5"
        )
    for name, shape in SHAPES.items():
        ours, torchs = counted(ModelRecipe(**BASE | shape))
        yield Figure(f"training FLOPs, {name}: ours / torch's", ours / torchs, "", 1, peer="FlopCounterMode")
        if ours != torchs:
            yield Figure(f"training FLOPs, {name}: not equal by", abs(ours - torchs), "FLOP", 0)


BASE: dict[str, Any] = {"d_model": 48, "num_heads": 3, "kv_channels": 8, "ffn": 50, "ffn_multiple": 8}


def counted(
    recipe: ModelRecipe, batch: int = 2, source: int = 7, target: int = 5, recompute: Recompute = "none"
) -> tuple[int, int]:
    """The model's FLOPs of forward and backward by the formula; all by torch's counter on the eager model."""
    model = OpenBAModel(recipe.architecture(VOCAB))
    if recompute != "none":
        # Products as on a GPU. oneDNN's, for fp32 on a CPU, repeat a block's last one, too: what an own node
        # saves is known after its product, what torch's saves before it.
        model = model.double()
    model.recompute(recompute)
    ids, written = torch.ones(batch, source, dtype=torch.long), torch.ones(batch, target, dtype=torch.long)
    # The CPU's fused attention is not in torch's counter; the math backend is, product by product.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, torch.ones_like(ids, dtype=torch.bool), written, written).backward()
    return batch * train_flops(recipe, VOCAB, source, target), counter.get_total_flops()
