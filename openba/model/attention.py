"""Scaled dot-product attention between rows of tokens.

Owns how queries meet keys in either layout (see `rows.py`); projections and rotation are `layers.py`'s,
caches `decoding.py`'s. The kernel is torch's, which keeps scores and softmax in fp32 whatever the inputs'
precision (paper section 3.4; `tests/model/test_attention.py` compares it with fp32 up to scores of 1e4).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .rows import Rows, Span

Pairs = tuple[tuple[Span, Span], ...]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    memory: Rows,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    stream: int | None = None,
    recompute: bool = False,
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
        stream: Whose random numbers are drawn, of several ranks that hold a layer's heads together; their
            common generator moves on by as much on each. None: the common generator's.
        recompute: Keep nothing of it for the backward pass, which does it again.

    Returns:
        `[tokens, heads, kv]`. A query whose row has no real key gets zeros, and so do its gradients.
    """
    if recompute:
        options: dict[str, Any] = {"causal": causal, "dropout": dropout, "stream": stream}
        return checkpoint(attend, query, key, value, rows, memory, use_reentrant=False, **options)
    grids = rows.width is not None and memory.width is not None
    whole = grids and (query.device.type != "cpu" or (rows.full and memory.full))
    with nullcontext() if stream is None or not dropout else _numbers_of(stream, query.device):
        return (_by_grid if whole else _by_row)(query, key, value, rows, memory, causal, dropout)


@contextmanager
def _numbers_of(stream: int, device: torch.device) -> Iterator[None]:
    """Other random numbers on each rank, found by the common generator, so that recomputation finds them."""
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + stream)
        yield


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
    if query.device.type == "cpu" and not dropout:
        # The kernel divides by a length of zero; such rows have nothing to compute.
        pairs = zip(rows.spans(), memory.spans(), strict=True)
        real = tuple((row, other) for row, other in pairs if row[0] < row[1] and other[0] < other[1])
        return _RowAttention.apply(query, key, value, real, causal)
    mixed: list[Tensor] = []
    for q, k, v in zip(rows.split(query), memory.split(key), memory.split(value), strict=True):
        # The fused kernel wants the batch dimension: without it torch takes the unfused path.
        q, k, v = (_batch(x) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=causal)
        mixed.append(out[0].transpose(0, 1))
    return rows.join(mixed)


def _batch(x: Tensor) -> Tensor:
    """`[tokens, heads, kv]` to `[1, heads, tokens, kv]`."""
    return x.transpose(0, 1)[None]


def _rows_of(like: Tensor, spans: list[Span]) -> Tensor:
    """Room for all rows of `spans`; zeros if there are places between them."""
    filled = sum(last - first for first, last in spans) == like.shape[0]
    make = torch.empty_like if filled else torch.zeros_like
    return make(like, memory_format=torch.contiguous_format)


class _RowAttention(torch.autograd.Function):
    """torch's fused CPU kernel for every row, as one node of the graph.

    The same kernel that `scaled_dot_product_attention` chooses, without the dozen nodes a row of slicing and
    joining around it.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, causal: bool) -> Tensor:
        mixed, sums = _rows_of(query, [row for row, _ in pairs]), []
        for (a, b), (c, d) in pairs:
            out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _batch(query[a:b]), _batch(key[c:d]), _batch(value[c:d]), 0.0, causal
            )
            mixed[a:b] = out[0].transpose(0, 1)
            sums.append(log_sum)
        ctx.pairs, ctx.causal = pairs, causal
        ctx.save_for_backward(query, key, value, mixed, *sums)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mixed, *sums = ctx.saved_tensors
        rows, memory = [row for row, _ in ctx.pairs], [other for _, other in ctx.pairs]
        grads = [_rows_of(x, spans) for x, spans in ((query, rows), (key, memory), (value, memory))]
        for ((a, b), (c, d)), log_sum in zip(ctx.pairs, sums, strict=True):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _batch(grad[a:b]), _batch(query[a:b]), _batch(key[c:d]), _batch(value[c:d]),
                _batch(mixed[a:b]), log_sum, 0.0, ctx.causal,
            )  # fmt: skip
            for into, part, (first, last) in zip(grads, parts, ((a, b), (c, d), (c, d)), strict=True):
                into[first:last] = part[0].transpose(0, 1)
        return *grads, None, None
