"""Adapters: few trained numbers beside frozen weights, as a recipe and as counts. Imports no torch.

Which library computes them is `openba.model.adapter`'s.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from openba.artifacts import Recipe
from openba.recipes.model import ModelRecipe
from openba.recipes.numbers import Decay, Positive, Size

Target = Literal["qkv", "q", "kv", "o", "fc_in", "fc_out"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""Linear layers of the blocks: self-attention's `qkv`, cross-attention's `q` and `kv`, `o` of both, SwiGLU's
`fc_in` and `fc_out`."""


class AdapterRecipe(Recipe):
    """Low-rank updates of linear layers; everything else stays as it is at the start."""

    kind: Literal["lora", "dora", "rslora"]
    """`lora`: W + (alpha / rank) * B A (arXiv 2106.09685). `rslora`: alpha / sqrt(rank) (2312.03732). `dora`:
    LoRA of the direction, and a trained magnitude for each output (2402.09353)."""
    rank: Size = 16
    alpha: Positive | None = None
    """Scale of the update; none: twice the rank."""
    dropout: Decay = 0.0
    """Of the update's input."""
    targets: tuple[Target, ...] = Field(default=TARGETS, min_length=1)
    """Layers that get an update."""

    @property
    def scale(self) -> float:
        """`alpha`, or its default."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


def adapter_parameters(model: ModelRecipe, adapter: AdapterRecipe) -> int:
    """Return how many numbers an adapter trains."""
    return sum(_layer_parameters(shape, adapter) for shape in target_shapes(model, adapter))


def target_shapes(model: ModelRecipe, adapter: AdapterRecipe) -> list[tuple[int, int]]:
    """Return inputs and outputs of each layer that gets an update."""
    width = model.num_heads * model.kv_channels
    hidden = model.d_model
    self_attention = {"qkv": (hidden, 3 * width), "o": (width, hidden)}
    cross_attention = {"q": (hidden, width), "kv": (hidden, 2 * width), "o": (width, hidden)}
    feed_forward = {"fc_in": (hidden, 2 * model.ffn_inner), "fc_out": (model.ffn_inner, hidden)}
    encoder_block = [self_attention, feed_forward]
    decoder_block = [self_attention, cross_attention, feed_forward]
    return [
        shape
        for depth, block in ((model.encoder_layers, encoder_block), (model.decoder_layers, decoder_block))
        for layers in block
        for name, shape in layers.items()
        if name in adapter.targets
        for _ in range(depth)
    ]


def _layer_parameters(shape: tuple[int, int], adapter: AdapterRecipe) -> int:
    inputs, outputs = shape
    magnitudes = outputs if adapter.kind == "dora" else 0
    return adapter.rank * (inputs + outputs) + magnitudes
