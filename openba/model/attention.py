"""Scaled dot-product attention between rows of tokens.

Owns how queries meet keys in either layout (see `rows.py`); projections and rotation are `layers.py`'s,
caches `decoding.py`'s. The kernel is torch's, which keeps scores and softmax in fp32 whatever the inputs'
precision (paper section 3.4; `tests/model/test_attention.py` compares it with fp32 up to scores of 1e4).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .rows import Rows


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    memory: Rows,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Each query attends to the real tokens of its own row.

    Args:
        query: `[tokens, heads, kv]`, laid out by `rows`.
        key: `[memory tokens, heads, kv]`, laid out by `memory`.
        value: The same shape.
        rows: Rows of the queries.
        memory: Rows of keys and values, as many.
        causal: Hide later positions; `rows` and `memory` are the same then.
        dropout: Share of attention probabilities set to zero.

    Returns:
        `[tokens, heads, kv]`. A query whose row has no real key gets zeros, and so do its gradients.
    """
    grids = rows.width is not None and memory.width is not None
    if grids and (query.device.type != "cpu" or (rows.full and memory.full)):
        return _by_grid(query, key, value, rows, memory, causal, dropout)
    return _by_row(query, key, value, rows, memory, causal, dropout)


def _by_grid(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, memory: Rows, causal: bool, dropout: float
) -> Tensor:
    """One call for all rows; padding is computed, and masked."""
    count = len(rows.lengths)
    grids = [x.unflatten(0, (count, -1)).transpose(1, 2) for x in (query, key, value)]
    # Padding stands at the end of a row, where a causal query that matters never looks.
    mask = None if causal or memory.full else memory.mask()[:, None, None, :]
    q, k, v = grids
    mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
    return mixed.transpose(1, 2).flatten(0, 1)


def _by_row(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, memory: Rows, causal: bool, dropout: float
) -> Tensor:
    """One call a row: no mask, no work on padding. On a CPU the calls cost less than what they save."""
    mixed: list[Tensor] = []
    for q, k, v in zip(rows.split(query), memory.split(key), memory.split(value), strict=True):
        # The fused kernel wants the batch dimension: without it torch takes the unfused path.
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=causal)
        mixed.append(out[0].transpose(0, 1))
    return rows.join(mixed)
