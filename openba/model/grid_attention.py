"""Attention over grids of tokens with masks, as transformers' interface has them: with and without a cache.

Owns `GridAttention`, which computes padding and needs no lengths of rows, so that graphs can be exported and
compiled and attention weights kept, and `CachedAttention` over transformers' caches. The model's own layout
without padding is `rows.py`'s. Travels with exported models.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EncoderDecoderCache

from openba.model.layers import CrossAttention
from openba.model.rows import Rows


class AttentionWeights:
    """Attention probabilities of a forward pass, `[batch, heads, queries, keys]` a layer."""

    def __init__(self) -> None:
        self.self_attention: list[Tensor] = []
        """Of each self-attention."""
        self.cross: list[Tensor] = []
        """Of each cross-attention."""


def attend_grid(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    weights: list[Tensor] | None = None,
) -> Tensor:
    """Scaled dot-product attention of `[batch, heads, tokens, kv]`, with its probabilities where asked for.

    Args:
        query: of the new tokens.
        keys: of all tokens that they may see.
        values: the same shape.
        mask: bool, broadcastable to `[batch, heads, queries, keys]`, True for a key to see; None: all.
        dropout: share of probabilities set to zero.
        weights: takes the probabilities, which costs memory for all of them at once.
    """
    # The least finite number and not -inf: a query that sees no key gets a mean, and no NaN reaches others.
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min)
    if weights is None:
        return F.scaled_dot_product_attention(query, keys, values, bias, dropout)
    scores = (query.float() @ keys.float().transpose(-1, -2)) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    probabilities = scores.softmax(-1).to(query.dtype)
    weights.append(probabilities)
    return F.dropout(probabilities, dropout) @ values


class Grid:
    """Layout of a whole grid of tokens, padding included: `Rows` without lengths."""

    def __init__(self, mask: Tensor) -> None:
        """Take a bool mask `[batch, width]`, True for a real token."""
        self.mask = mask
        self.positions = (mask.cumsum(-1) - 1).clamp(min=0).flatten()
        """int64 `[batch * width]`: position of each token among the real ones of its row."""
        self.lengths = (mask.shape[1],)
        """The longest that a row may be, for the check against the model's positions."""

    def flat(self, grid: Tensor) -> Tensor:
        """`[batch, width, ...]` to `[batch * width, ...]`."""
        return grid.flatten(0, 1)

    def grid(self, tokens: Tensor, width: int) -> Tensor:
        """`[batch * width, ...]` to `[batch, width, ...]`, zero at padding."""
        real = self.mask.view(*self.mask.shape, *(1 for _ in tokens.shape[1:]))
        return tokens.unflatten(0, (-1, width)) * real


class GridAttention:
    """Attention over all positions of a grid, padding included; of the encoder or of the decoder."""

    def __init__(
        self,
        source_mask: Tensor,
        dropout: float,
        weights: AttentionWeights | None,
        target_mask: Tensor | None = None,
        encoder_output: Tensor | None = None,
    ) -> None:
        """Take masks and, for a decoder, the encoder's output.

        Args:
            source_mask: bool `[batch, source]`.
            dropout: of attention probabilities.
            weights: takes the probabilities, if they are wanted.
            target_mask: bool `[batch, target]`, of a decoder.
            encoder_output: `[batch, source, hidden]`, of a decoder.
        """
        self.cross_mask = source_mask[:, None, None, :]
        self.self_mask = self.cross_mask
        self.batch = len(source_mask)
        self.dropout = dropout
        self.weights = weights
        self.encoder_output = None if encoder_output is None else encoder_output.flatten(0, 1)
        if target_mask is not None:
            length = target_mask.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=target_mask.device).tril()
            self.self_mask = causal & target_mask[:, None, None, :]

    def to(self, device: torch.device, **options: Any) -> GridAttention:
        """Move what blocks on another device read; accelerate asks for it before such a block runs."""
        self.cross_mask = self.cross_mask.to(device)
        self.self_mask = self.self_mask.to(device)
        if self.encoder_output is not None:
            self.encoder_output = self.encoder_output.to(device)
        return self

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the tokens of the same side."""
        weights = None if self.weights is None else self.weights.self_attention
        return self._attend(query, key, value, self.self_mask, weights)

    def attend_cross(self, layer_index: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the encoder's output."""
        assert self.encoder_output is not None, "an encoder has no cross-attention"
        key, value = projection.memory(self.encoder_output)
        weights = None if self.weights is None else self.weights.cross
        return self._attend(query, key, value, self.cross_mask, weights)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, weights: list[Tensor] | None
    ) -> Tensor:
        grids = (tokens.unflatten(0, (self.batch, -1)).transpose(1, 2) for tokens in (query, key, value))
        output = attend_grid(next(grids), next(grids), next(grids), mask, self.dropout, weights)
        return output.transpose(1, 2).flatten(0, 1)


class CachedAttention:
    """A decoder's attention over transformers' cache: new positions against all so far."""

    def __init__(
        self,
        cache: EncoderDecoderCache,
        shape: torch.Size,
        mask: Tensor | None,
        encoded: Tensor,
        source: Rows | Grid,
        weights: AttentionWeights | None = None,
    ) -> None:
        """Take a cache and the layout of the encoder's output.

        Args:
            cache: of earlier positions; the new ones are added.
            shape: `[batch, target]` of the new tokens.
            mask: `[batch, cached + target]`, 0 for padding; None: none is.
            encoded: the encoder's output `[batch, source, hidden]`.
            source: its layout.
            weights: takes the attention probabilities, if they are wanted.
        """
        self.cache = cache
        self.shape = shape
        self.encoded = encoded
        self.source = source
        self.weights = weights
        self.past = past = int(cache.get_seq_length())
        batch, length = shape
        device = encoded.device
        if mask is not None and mask.dim() == 4:
            # For a static cache `generate` sends `[batch, 1, target, keys]`, bool or added to the scores;
            # the last query sees all that is real.
            mask = mask[:, 0, -1, : past + length]
            mask = mask == 0 if mask.is_floating_point() else mask
        elif mask is not None:
            check_shape(mask, (batch, past + length), "decoder_attention_mask")
        # A graph that is compiled cannot look whether there is padding.
        if mask is None or (not torch.compiler.is_compiling() and bool(mask.all())):
            self.visible = None
            positions = torch.arange(past, past + length, device=device).expand(batch, -1)
        else:
            self.visible = mask.bool()
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        self.rows = Rows((past + length,) * batch, length, positions.flatten())
        self.places = torch.arange(past, past + length, device=device)

    def to(self, device: torch.device, **options: Any) -> CachedAttention:
        """See `GridAttention.to`."""
        self.encoded = self.encoded.to(device)
        self.places = self.places.to(device)
        self.visible = None if self.visible is None else self.visible.to(device)
        return self

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values, attend to all so far."""
        keys, values = self.cache.self_attention_cache.update(self._grid(key), self._grid(value), layer_index)
        weights = None if self.weights is None else self.weights.self_attention
        return self._attend(query, keys, values, self._causal(keys.shape[-2]), weights)

    def attend_cross(self, layer_index: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the encoder's output, whose keys and values are computed once."""
        cross = self.cache.cross_attention_cache
        width = self.encoded.shape[1]
        if not self.cache.is_updated.get(layer_index):
            key, value = projection.memory(self.source.flat(self.encoded))
            grid = (self.source.grid(x, width).transpose(1, 2) for x in (key, value))
            cross.update(next(grid), next(grid), layer_index)
            self.cache.is_updated[layer_index] = True
        # transformers declares its cache layers without the attributes that a filled one has.
        stored: Any = cross.layers[layer_index]
        mask = None
        if isinstance(self.source, Grid):
            mask = self.source.mask[:, None, None, :]
        elif self.source.index is not None:
            ones = torch.ones_like(self.source.index, dtype=torch.bool)
            mask = self.source.grid(ones, width)[:, None, None, :]
        weights = None if self.weights is None else self.weights.cross
        return self._attend(query, stored.keys, stored.values, mask, weights)

    def _causal(self, keys: int) -> Tensor | None:
        """Bool `[batch or 1, 1, target, keys]`, or none where a single query sees all keys."""
        if self.visible is None and len(self.places) == 1 and keys == self.past + 1:
            return None
        mask = (torch.arange(keys, device=self.places.device) <= self.places[:, None])[None, None]
        if self.visible is None:
            return mask
        seen = F.pad(self.visible, (0, keys - self.visible.shape[1]))[:, None, None, :]
        return mask & seen

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, weights: list[Tensor] | None
    ) -> Tensor:
        mixed = attend_grid(self._grid(query), keys, values, mask, weights=weights)
        return mixed.transpose(1, 2).flatten(0, 1)

    def _grid(self, x: Tensor) -> Tensor:
        """`[batch * target, heads, kv]` to `[batch, heads, target, kv]`."""
        return x.unflatten(0, self.shape).transpose(1, 2)


def check_shape(mask: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Refuse a mask that is not of its tokens' shape.

    Raises:
        ValueError: names the mask.
    """
    if mask.shape != shape:
        raise ValueError(f"{what}: its shape is {list(mask.shape)}, not {list(shape)} as its tokens'")
