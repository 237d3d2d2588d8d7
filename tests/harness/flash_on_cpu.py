"""Flash attention over packed rows on a CPU, by plain formulas row by row, forward and backward.

torch has these two operations for CUDA (and for meta tensors) only. Registered for the CPU, they let the code
of `openba.model.cuda` compute numbers there. In fp32 or fp64 they are the reference of attention; what they
draw for dropout is another stream than CUDA's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@contextmanager
def flash_attention_on_cpu() -> Iterator[None]:
    """Register the operations for the CPU inside the block."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    return_mask: bool,
    **options: Any,
) -> tuple[Tensor, ...]:
    output = torch.zeros_like(query)
    log_sums = query.new_zeros((query.shape[1], query.shape[0]), dtype=torch.float32)
    seed = torch.randint(2**31, (2,), dtype=torch.uint64) if dropout else torch.zeros(2, dtype=torch.uint64)
    for row, (queries, keys) in enumerate(_spans(query_offsets, key_offsets, longest_query, longest_key)):
        probabilities, log_sum = _probabilities(query[queries], key[keys], causal)
        kept = _kept(probabilities, dropout, int(seed[0]), row)
        output[queries] = torch.einsum("hqk,khc->qhc", probabilities * kept, _wide(value[keys])).to(
            query.dtype
        )
        log_sums[:, queries] = log_sum.float()
    return output, log_sums, seed, torch.zeros((), dtype=torch.uint64), query.new_empty(0)


def _backward(
    output_gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    seed: Tensor,
    unused: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    scale = query.shape[-1] ** -0.5
    for row, (queries, keys) in enumerate(_spans(query_offsets, key_offsets, longest_query, longest_key)):
        probabilities, _ = _probabilities(query[queries], key[keys], causal)
        kept = _kept(probabilities, dropout, int(seed[0]), row)
        slope = _wide(output_gradient[queries])
        value_gradient = torch.einsum("hqk,qhc->khc", probabilities * kept, slope)
        probability_gradient = torch.einsum("qhc,khc->hqk", slope, _wide(value[keys])) * kept
        mean = (probability_gradient * probabilities).sum(-1, keepdim=True)
        score_gradient = probabilities * (probability_gradient - mean) * scale
        gradients[0][queries] = torch.einsum("hqk,khc->qhc", score_gradient, _wide(key[keys])).to(query.dtype)
        gradients[1][keys] = torch.einsum("hqk,qhc->khc", score_gradient, _wide(query[queries])).to(key.dtype)
        gradients[2][keys] = value_gradient.to(value.dtype)
    return gradients


def _spans(
    query_offsets: Tensor, key_offsets: Tensor, longest_query: int, longest_key: int
) -> list[tuple[slice, slice]]:
    """Queries and keys of each row that has both; what the kernel on CUDA relies on is checked."""
    assert query_offsets.dtype == key_offsets.dtype == torch.int32
    borders = [offsets.tolist() for offsets in (query_offsets, key_offsets)]
    sides = [[slice(*pair) for pair in pairwise(each)] for each in borders]
    for spans, longest in zip(sides, (longest_query, longest_key), strict=True):
        assert max((span.stop - span.start for span in spans), default=0) <= longest
    return [
        (queries, keys)
        for queries, keys in zip(*sides, strict=True)
        if queries.start < queries.stop and keys.start < keys.stop
    ]


def _probabilities(query: Tensor, key: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Probabilities `[heads, queries, keys]` and log-sums `[heads, queries]` of one row, in fp32 at least."""
    scores = torch.einsum("qhc,khc->hqk", _wide(query), _wide(key)) * query.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + key.shape[0] - query.shape[0])
        scores = scores.masked_fill(hidden, -torch.inf)
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum[..., None]).exp(), log_sum


def _kept(probabilities: Tensor, dropout: float, seed: int, row: int) -> Tensor:
    """Factor of each probability: 0 where it is dropped, more than 1 where it is kept."""
    if not dropout:
        return torch.ones_like(probabilities)
    generator = torch.Generator().manual_seed(seed + row)
    draws = torch.rand(probabilities.shape, generator=generator, dtype=probabilities.dtype)
    return (draws >= dropout) / (1 - dropout)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
