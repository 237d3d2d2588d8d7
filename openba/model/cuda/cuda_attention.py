"""Attention on CUDA devices: torch's variable-length flash attention over packed rows.

One call for all rows, without padding and without a mask, where flash attention exists: bf16 and fp16, up to
256 channels a head. A padded layout is one `scaled_dot_product_attention`, fp32 one a row. No GPU was used
yet: shapes and dtypes, also of gradients, are tested on meta tensors; numbers and speed are not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload

from openba.model.plain_attention import attend_by_grid, attend_by_row
from openba.model.rows import Rows

_MOST_CHANNELS = 256
"""Channels of a head that flash attention 2 takes at most, a multiple of 8."""


class CUDAAttention:
    """Implement `openba.model.attention.AttentionBackend`."""

    saved_operations: tuple[OpOverload, ...] = (
        torch.ops.aten._flash_attention_forward.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
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
        """Attend in one call wherever the layouts and the precision allow it."""
        if _has_flash_kernel(query) and query_rows.packed and key_rows.packed:
            return attend_packed(query, key, value, query_rows, key_rows, causal, dropout)
        # Padded rows are a grid already. The mask that padding needs rules out flash attention.
        if query_rows.width is not None and key_rows.width is not None:
            return attend_by_grid(query, key, value, query_rows, key_rows, causal, dropout)
        return attend_by_row(query, key, value, query_rows, key_rows, causal, dropout)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rows: Rows,
    key_rows: Rows,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Attend in one flash-attention call over all rows of two layouts without padding."""
    # The operation that `torch.nn.attention.varlen` wraps; the wrapper has no dropout. It takes lengths as
    # int32 offsets on the device and the longest ones as numbers of the host, so it synchronises nothing.
    output, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, query_rows.offsets, key_rows.offsets,
        query_rows.longest, key_rows.longest, dropout, causal, False,
    )  # fmt: skip
    return output


def _has_flash_kernel(query: Tensor) -> bool:
    # fp32 has no flash kernel at all.
    channels = query.shape[-1]
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    return is_half and channels <= _MOST_CHANNELS and channels % 8 == 0
