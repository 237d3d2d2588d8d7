"""Keys and values of decoding in preallocated memory, and the attention that reads them.

Owns `CacheAttention`, by which `DecoderBlock` computes new tokens against all before. Who reserves the memory
and which rows it serves is `decoding.py`'s, and in serving `openba.serve.slots`'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from openba.model.layers import CrossAttention
from openba.model.rows import Rows, first
from openba.model.seq2seq import Seq2Seq


class CacheAttention:
    """Attention of new decoder tokens to cached keys and values; implements `blocks.DecoderAttention`."""

    def __init__(
        self,
        self_cache: Tensor,
        cross_cache: Tensor,
        positions: Sequence[int],
        new_tokens: int,
        source_lengths: Sequence[int],
    ) -> None:
        """Take the caches of `len(positions)` rows.

        Args:
            self_cache: `[layers, 2, at least rows, heads, positions, kv]`; new keys and values are written
                into it.
            cross_cache: The sources' keys and values, `[layers, 2, at least rows, heads, source, kv]`.
            positions: Each row's first new position; all are the same where there are several new tokens.
            new_tokens: New tokens of each row; several only if nothing is cached before.
            source_lengths: Tokens of each row's source.
        """
        row_count = len(positions)
        self.new_tokens = new_tokens
        self.self_cache = self_cache[:, :, :row_count, :, : max(positions) + new_tokens]
        self.cross_cache = cross_cache[:, :, :row_count, :, : max(source_lengths)]
        # Made once for all layers; None, and nothing to add to scores, where all rows are alike.
        self.cross_bias = hide_unused(source_lengths, self.cross_cache)
        self.self_bias = hide_unused([position + new_tokens for position in positions], self.self_cache)
        self.first_position = positions[0]
        # Rows at different positions write to, and see, different parts of the cache.
        differ = self.self_bias is not None
        self.row_positions = torch.tensor(positions, device=self_cache.device) if differ else None
        self.row_numbers = torch.arange(row_count, device=self_cache.device) if differ else None

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values and attend to all so far."""
        keys, values = self.self_cache[layer_index]
        self._store(keys, key)
        self._store(values, value)
        return self._attend(query, keys, values, self.self_bias, causal=self.new_tokens > 1)

    def attend_cross(self, layer_index: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the stored keys and values of the source."""
        keys, values = self.cross_cache[layer_index]
        return self._attend(query, keys, values, self.cross_bias, causal=False)

    def _store(self, cached: Tensor, new: Tensor) -> None:
        # A slice is one copy; indices, which rows at different positions need, are a scatter.
        if self.row_positions is None:
            cached[:, :, self.first_position :] = self._grid(new)
        else:
            cached[self.row_numbers, :, self.row_positions] = new

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, causal: bool
    ) -> Tensor:
        output = F.scaled_dot_product_attention(self._grid(query), keys, values, bias, is_causal=causal)
        return output.transpose(1, 2).flatten(0, 1)

    def _grid(self, tokens: Tensor) -> Tensor:
        """`[rows * new, heads, kv]` to `[rows, heads, new, kv]`."""
        return tokens.unflatten(0, (-1, self.new_tokens)).transpose(1, 2)


def decode_new_tokens(
    model: Seq2Seq,
    ids: Tensor,
    positions: Sequence[int],
    self_cache: Tensor,
    cross_cache: Tensor,
    source_lengths: Sequence[int],
) -> Tensor:
    """Hidden states `[rows, new, hidden]` of int64 ids `[rows, new]`; the rest is as in `CacheAttention`."""
    row_count, new_tokens = ids.shape
    attention = CacheAttention(self_cache, cross_cache, positions, new_tokens, source_lengths)
    first_positions = torch.tensor(positions, device=ids.device)
    token_positions = first_positions[:, None] + torch.arange(new_tokens, device=ids.device)
    lengths = tuple(position + new_tokens for position in positions)
    rows = Rows(lengths, new_tokens, token_positions.flatten())
    return model.decode(ids.flatten(), rows, attention).unflatten(0, (row_count, new_tokens))


def hide_unused(lengths: Sequence[int], cached: Tensor) -> Tensor | None:
    """Return the bias of scores by which each row sees only its first `lengths` positions of a cache.

    `cached` is `[..., positions, kv]`, the bias `[rows, 1, 1, positions]`; None if every row sees all.
    """
    width = cached.shape[-2]
    if all(length == width for length in lengths):
        return None
    mask = first(torch.tensor(lengths, device=cached.device), width)
    bias = torch.zeros(mask.shape, dtype=cached.dtype, device=cached.device)
    return bias.masked_fill_(~mask, -torch.inf)[:, None, None]
