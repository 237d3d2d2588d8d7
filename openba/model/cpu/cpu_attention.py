"""Attention on a CPU: torch's fused kernel row by row, as one node of the graph.

The calls cost less than the padding that they save, so only layouts without padding are computed as a grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import once_differentiable

from openba.model.functions import AutogradContext
from openba.model.plain_attention import as_batch, attend_by_grid, attend_by_row
from openba.model.rows import Rows, Span

SpanPairs = tuple[tuple[Span, Span], ...]
"""Spans of a row's queries and of its keys, row by row."""


class CPUAttention:
    """Implement `openba.model.attention.AttentionBackend`."""

    saved_operations: tuple[OpOverload, ...] = (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_rows: Rows,
        key_rows: Rows,
        causal: bool,
        dropout: float,
    ) -> Tensor:
        """Attend in one call where there is no padding, else row by row."""
        # Without padding one call has all rows' work to share among threads.
        if query_rows.full and key_rows.full:
            return attend_by_grid(query, key, value, query_rows, key_rows, causal, dropout)
        # The fused CPU kernel has no dropout; torch takes its unfused path.
        if dropout:
            return attend_by_row(query, key, value, query_rows, key_rows, causal, dropout)
        return attend_in_one_node(query, key, value, query_rows, key_rows, causal)


def attend_in_one_node(
    query: Tensor, key: Tensor, value: Tensor, query_rows: Rows, key_rows: Rows, causal: bool
) -> Tensor:
    """Compute `attend_by_row` without dropout, and without its dozen autograd nodes a row."""
    all_pairs = zip(query_rows.spans(), key_rows.spans(), strict=True)
    # The kernel divides by a length of zero; such rows have nothing to compute.
    span_pairs = tuple(pair for pair in all_pairs if all(first < end for first, end in pair))
    return _RowAttention.apply(query, key, value, span_pairs, causal)


class _RowAttention(torch.autograd.Function):
    """The kernel that `scaled_dot_product_attention` chooses on a CPU, called for every row."""

    @staticmethod
    def forward(
        ctx: AutogradContext, query: Tensor, key: Tensor, value: Tensor, span_pairs: SpanPairs, causal: bool
    ) -> Tensor:
        output = _make_room(query, [query_span for query_span, _ in span_pairs])
        log_sums = []
        for query_span, key_span in span_pairs:
            row_query, row_key, row_value = _row_tensors(query, key, value, query_span, key_span)
            row_output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                row_query, row_key, row_value, 0.0, causal
            )
            output[slice(*query_span)] = row_output[0].transpose(0, 1)
            log_sums.append(log_sum)
        # The log-sums let the backward kernel recompute probabilities: no scores are kept.
        ctx.span_pairs = span_pairs
        ctx.causal = causal
        ctx.save_for_backward(query, key, value, output, *log_sums)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        key_spans = [key_span for _, key_span in ctx.span_pairs]
        query_gradient = _make_room(query, [query_span for query_span, _ in ctx.span_pairs])
        key_gradient = _make_room(key, key_spans)
        value_gradient = _make_room(value, key_spans)
        for (query_span, key_span), log_sum in zip(ctx.span_pairs, log_sums, strict=True):
            row_query, row_key, row_value = _row_tensors(query, key, value, query_span, key_span)
            row_gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                as_batch(output_gradient[slice(*query_span)]), row_query, row_key, row_value,
                as_batch(output[slice(*query_span)]), log_sum, 0.0, ctx.causal,
            )  # fmt: skip
            query_gradient[slice(*query_span)] = row_gradients[0][0].transpose(0, 1)
            key_gradient[slice(*key_span)] = row_gradients[1][0].transpose(0, 1)
            value_gradient[slice(*key_span)] = row_gradients[2][0].transpose(0, 1)
        return query_gradient, key_gradient, value_gradient, None, None


def _row_tensors(
    query: Tensor, key: Tensor, value: Tensor, query_span: Span, key_span: Span
) -> tuple[Tensor, Tensor, Tensor]:
    """One row's query, key and value `[1, heads, tokens, kv]`."""
    key_slice = slice(*key_span)
    return as_batch(query[slice(*query_span)]), as_batch(key[key_slice]), as_batch(value[key_slice])


def _make_room(like: Tensor, spans: list[Span]) -> Tensor:
    """Memory for all rows of `spans`; zeros if there are tokens between them."""
    is_covered = sum(end - first for first, end in spans) == like.shape[0]
    make = torch.empty_like if is_covered else torch.zeros_like
    return make(like, memory_format=torch.contiguous_format)
