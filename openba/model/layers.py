"""The parts of a block: norm, rotary embedding, attention with an optional cache, SwiGLU.

Owns the arithmetic of one sublayer. How sublayers are joined to stacks is `model.py`'s.
Shapes: B batch, S source (encoder) time, T target (decoder) time, H heads, K kv_channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openba.recipes.model import ModelRecipe

Cache = tuple[Tensor, Tensor]
"""Keys and values `[batch, heads, time, kv]`; self-attention keys are stored after rotation."""


def make_norm(recipe: ModelRecipe) -> nn.Module:
    """RMSNorm (paper section 3.2) or LayerNorm with bias (released weights)."""
    kind = nn.RMSNorm if recipe.norm == "rmsnorm" else nn.LayerNorm
    return kind(recipe.d_model, eps=recipe.norm_eps)


def rotary_table(length: int, width: int, base: float, device: torch.device | None = None) -> Tensor:
    """Cosines and sines `[2, length, width]`, always fp32: angles in half precision lose positions."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x_BHTK: Tensor, table: Tensor, offset: int = 0) -> Tensor:
    """Rotate-half rotary embedding of positions `offset ..`; computed in fp32, returned in x's dtype."""
    cos, sin = table[:, offset : offset + x_BHTK.shape[-2]]
    x = x_BHTK.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BHTK.dtype)


class Attention(nn.Module):
    """Multi-head attention; heads * kv_channels need not equal d_model (release: 40 * 128, 4096)."""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        width = recipe.num_heads * recipe.kv_channels
        self.num_heads, self.dropout = recipe.num_heads, recipe.dropout
        self.query = nn.Linear(recipe.d_model, width, bias=recipe.attention_bias)
        self.key = nn.Linear(recipe.d_model, width, bias=recipe.attention_bias)
        self.value = nn.Linear(recipe.d_model, width, bias=recipe.attention_bias)
        self.output = nn.Linear(width, recipe.d_model, bias=recipe.attention_bias)

    def project(self, x_BSD: Tensor, table: Tensor | None = None, offset: int = 0) -> Cache:
        """Keys and values of `x`, rotated if a table is given."""
        keys, values = self._heads(self.key(x_BSD)), self._heads(self.value(x_BSD))
        return (keys if table is None else rotate(keys, table, offset)), values

    def forward(
        self,
        x_BTD: Tensor,
        cache: Cache,
        *,
        table: Tensor | None = None,
        offset: int = 0,
        bias: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Attend from `x` to the given keys and values.

        Args:
            x_BTD: Queries before projection.
            cache: What is attended to, from `project`.
            table: Rotary table for self-attention; cross-attention has none, as in the release.
            offset: Position of the first query.
            bias: Added to the scores, `[B, 1, 1, S]`, finite (see `padding_bias`).
            causal: Hide later positions.
        """
        queries = self._heads(self.query(x_BTD))
        if table is not None:
            queries = rotate(queries, table, offset)
        keys, values = cache
        dropout = self.dropout if self.training else 0.0
        # The fused kernel accumulates the softmax in fp32 whatever the input (paper section 3.4).
        mixed = F.scaled_dot_product_attention(queries, keys, values, bias, dropout, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x_BTW: Tensor) -> Tensor:
        return x_BTW.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def padding_bias(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, 1, 1, S]` of 0 and a large negative, finite so that a row of padding gives no NaN."""
    return (~mask_BS)[:, None, None, :].to(dtype) * -1e4


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases; width as `ModelRecipe.ffn_inner`."""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.gate = nn.Linear(recipe.d_model, recipe.ffn_inner, bias=False)
        self.up = nn.Linear(recipe.d_model, recipe.ffn_inner, bias=False)
        self.down = nn.Linear(recipe.ffn_inner, recipe.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_model]` to the same."""
        return self.down(F.silu(self.gate(x)) * self.up(x))
