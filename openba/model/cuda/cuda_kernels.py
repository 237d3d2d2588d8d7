"""Kernels for CUDA devices: the plain formulas, which torch.compile can fuse.

No kernel here is hand-written yet, and none of these was timed on a GPU. Tests run them on meta tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from openba.model.functions import rms_norm, rotate, swiglu


class CUDAKernels:
    """Implement `openba.model.kernels.Kernels` by plain formulas."""

    saved_operations: tuple[OpOverload, ...] = (
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
    )

    def linear(self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        return F.linear(hidden_states, weight, bias)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Half-precision operands, fp32 sum: the product reads and writes the sum itself."""
        if left.dtype == total.dtype:
            torch.addmm(total, left, right, out=total)
        else:
            torch.addmm(total, left, right, out_dtype=total.dtype, out=total)

    def rms_norm(self, hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`[..., width]` to the same."""
        return rms_norm(hidden_states, weight, epsilon)

    def swiglu(self, gate_and_up: Tensor) -> Tensor:
        """`[..., 2 * width]` to `[..., width]`."""
        return swiglu(gate_and_up)

    def split_rotate(
        self, packed_qkv: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`[tokens, heads, 3, kv]` to three of `[tokens, heads, kv]`."""
        # Query and key in one rotation: half the launches of two.
        query_and_key, value = packed_qkv.split([2, 1], dim=-2)
        rotated = rotate(query_and_key, cosines[:, :, None], sines[:, :, None])
        query, key = rotated.unbind(-2)
        return query, key, value.squeeze(-2)
