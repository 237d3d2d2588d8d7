"""Attention between rows by torch's `scaled_dot_product_attention`: one call for all rows, or one a row.

Both forms run on every device and in every precision. `attention.py` chooses among them and the device kinds'
own. Tensors are `[tokens, heads, kv]`, laid out by `rows.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from openba.model.rows import Rows


def attend_by_grid(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rows: Rows,
    key_rows: Rows,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Attend in one call for all rows of two padded layouts; padding is computed, and masked."""
    row_count = len(query_rows.lengths)
    query_grid, key_grid, value_grid = (
        tokens.unflatten(0, (row_count, -1)).transpose(1, 2) for tokens in (query, key, value)
    )
    # Padding stands at the end of a row, which a causal query of a real token never sees.
    needs_mask = not causal and not key_rows.full
    mask = key_rows.mask[:, None, None, :] if needs_mask else None
    output_grid = F.scaled_dot_product_attention(
        query_grid, key_grid, value_grid, mask, dropout, is_causal=causal
    )
    return output_grid.transpose(1, 2).flatten(0, 1)


def attend_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rows: Rows,
    key_rows: Rows,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Attend in one call a row, for either layout: no mask, and no work on padding."""
    # Each new pair of lengths may cost a graph of its own: cuDNN, which torch prefers on sm_90, builds one
    # for each shape, in 23 to 37 ms by public reports. So this is the last resort on CUDA.
    outputs: list[Tensor] = []
    for row_query, row_key, row_value in zip(
        query_rows.split(query), key_rows.split(key), key_rows.split(value), strict=True
    ):
        # The fused kernel needs the batch dimension: without it torch takes the unfused path.
        row_output = F.scaled_dot_product_attention(
            as_batch(row_query), as_batch(row_key), as_batch(row_value), None, dropout, is_causal=causal
        )
        outputs.append(row_output[0].transpose(0, 1))
    return query_rows.join(outputs)


def as_batch(tokens: Tensor) -> Tensor:
    """`[tokens, heads, kv]` to `[1, heads, tokens, kv]`."""
    return tokens.transpose(0, 1)[None]
