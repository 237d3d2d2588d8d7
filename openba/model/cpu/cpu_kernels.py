"""Kernels for CPUs: oneDNN's linear layer, and one autograd node each for RMSNorm, SwiGLU and rotation.

torch has the last three as chains of elementwise steps, each a trip through memory. Measured on 2,048 x 512
fp32, forward and backward, one thread: RMSNorm 5.0 ms against 19.6 ms for `torch.nn.functional.rms_norm`.
Where a form does not apply (half precision, no gradients) the plain formulas or fewer calls are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula

from openba.model.functions import AutogradContext, rms_norm

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# torch multiplies fp32 by MKL, which uses short vectors on AMD: 115 GFLOP/s a core of a Zen 5, oneDNN 255;
# with AVX2 alone 115 and 130.
_ONEDNN_LINEAR: OpOverload | None = torch.ops.mkldnn._linear_pointwise.default if _HAS_ONEDNN else None


class CPUKernels:
    """Implement `openba.model.kernels.Kernels` for fp32 on a CPU; other precisions take torch's functions."""

    saved_operations: tuple[OpOverload, ...] = (
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        *(() if _ONEDNN_LINEAR is None else (_ONEDNN_LINEAR,)),
    )

    def linear(self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`; fp32 by oneDNN."""
        # Half precision and autocast stay torch's: oneDNN's pointwise linear layer is measured for fp32 only.
        is_fp32 = hidden_states.dtype == weight.dtype == torch.float32
        if _ONEDNN_LINEAR is None or not is_fp32 or not hidden_states.numel():
            return F.linear(hidden_states, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            return F.linear(hidden_states, weight, bias)
        if torch.is_grad_enabled():
            return cast(Tensor, _Linear.apply(hidden_states, weight, bias))
        return _onednn_linear(hidden_states, weight, bias)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Round a product of half-precision operands before adding it: no CPU kernel is mixed."""
        if left.dtype == total.dtype:
            # In place; torch's FLOP counter, which a test asks, does not know `addmm_`.
            torch.addmm(total, left, right, out=total)
        else:
            total += left @ right

    def rms_norm(self, hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`[..., width]` to the same."""
        # Half precision would round the sum of squares here; torch's own form sums in fp32.
        is_precise = hidden_states.dtype in (torch.float32, torch.float64)
        if not torch.is_grad_enabled() or not is_precise:
            return rms_norm(hidden_states, weight, epsilon)
        return _RMSNorm.apply(hidden_states.contiguous(), weight, epsilon)

    def swiglu(self, gate_and_up: Tensor) -> Tensor:
        """`[..., 2 * width]` to `[..., width]`."""
        if torch.is_grad_enabled():
            return _SwiGLU.apply(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def split_rotate(
        self, packed_qkv: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`[tokens, heads, 3, kv]` to three of `[tokens, heads, kv]`."""
        if torch.is_grad_enabled():
            return _SplitRotate.apply(packed_qkv, cosines, sines)
        # Query and key in one go: in generation the number of calls is what costs.
        query_and_key = packed_qkv[..., :2, :]
        rotated = torch.empty_like(query_and_key)
        _rotate_into(rotated, query_and_key, cosines.unsqueeze(-2), sines.unsqueeze(-2))
        return rotated[..., 0, :], rotated[..., 1, :], packed_qkv[..., 2, :]


def _linear_flops(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *_: object,
    out_shape: object = None,
    **__: object,
) -> int:
    """Count for torch's FLOP counter, which does not know oneDNN's call."""
    return 2 * math.prod(input_shape) * weight_shape[0]


if _HAS_ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_linear_flops)


def _onednn_linear(hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, cast(OpOverload, _ONEDNN_LINEAR)(hidden_states, weight, bias, "none", [], ""))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: AutogradContext, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden_states, weight)
        return _onednn_linear(hidden_states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_states, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        # Both products want two dimensions; leading ones are rows like any other.
        flat_gradient = output_gradient.reshape(-1, output_gradient.shape[-1])
        flat_input = hidden_states.reshape(-1, hidden_states.shape[-1])
        return (
            _onednn_linear(output_gradient, weight.T) if wants_input else None,
            _onednn_linear(flat_gradient.T, flat_input.T) if wants_weight else None,
            flat_gradient.sum(0) if wants_bias else None,
        )


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: AutogradContext, hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(hidden_states.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden_states, weight, inverse_rms)
        return (hidden_states * inverse_rms).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, output_gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_states, weight, inverse_rms = ctx.saved_tensors
        width = hidden_states.shape[-1]
        # LayerNorm's fused backward at mean 0 is RMSNorm's, less one term: it also centres the gradient.
        # That term is added back. RMSNorm's own kernel exists on CUDA only.
        zero_mean = torch.zeros_like(inverse_rms)
        input_gradient, weight_gradient, _ = torch.ops.aten.native_layer_norm_backward(
            output_gradient, hidden_states, [width], zero_mean, inverse_rms, weight, None, [True, True, False]
        )
        flat_gradient = output_gradient.reshape(-1, width)
        mean_gradient = torch.mv(flat_gradient, weight).div_(width).view_as(inverse_rms)
        return input_gradient.add_(mean_gradient.mul_(inverse_rms)), weight_gradient, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: AutogradContext, gate_and_up: Tensor) -> Tensor:
        gate, up = gate_and_up.chunk(2, dim=-1)
        ctx.save_for_backward(gate_and_up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, output_gradient: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        input_gradient = torch.empty_like(gate_and_up)
        # Both halves are written in place: no concatenation.
        gate_gradient, up_gradient = input_gradient.chunk(2, dim=-1)
        torch.mul(F.silu(gate), output_gradient, out=up_gradient)
        torch.ops.aten.silu_backward.grad_input(output_gradient * up, gate, grad_input=gate_gradient)
        return input_gradient


class _SplitRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext, packed_qkv: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = packed_qkv.unbind(-2)
        rotated_query = torch.empty_like(query)
        rotated_key = torch.empty_like(key)
        _rotate_into(rotated_query, query, cosines, sines)
        _rotate_into(rotated_key, key, cosines, sines)
        ctx.save_for_backward(cosines, sines)
        return rotated_query, rotated_key, value.contiguous()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: AutogradContext, query_gradient: Tensor, key_gradient: Tensor, value_gradient: Tensor
    ) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        *leading, width = value_gradient.shape
        packed_gradient = value_gradient.new_empty((*leading, 3, width))
        # The gradient of a rotation is the rotation back.
        _rotate_into(packed_gradient[..., 0, :], query_gradient, cosines, -sines)
        _rotate_into(packed_gradient[..., 1, :], key_gradient, cosines, -sines)
        packed_gradient[..., 2, :] = value_gradient
        return packed_gradient, None, None


def _rotate_into(output: Tensor, hidden_states: Tensor, cosines: Tensor, sines: Tensor) -> None:
    """Rotate as `functions.rotate`, without a concatenation; `output` has the input's shape and any dtype."""
    half_width = hidden_states.shape[-1] // 2
    first_half = hidden_states[..., :half_width]
    second_half = hidden_states[..., half_width:]
    if hidden_states.dtype == cosines.dtype:
        torch.mul(first_half, cosines, out=output[..., :half_width]).addcmul_(second_half, sines, value=-1)
        torch.mul(second_half, cosines, out=output[..., half_width:]).addcmul_(first_half, sines)
    else:
        output[..., :half_width] = torch.addcmul(first_half * cosines, second_half, sines, value=-1)
        output[..., half_width:] = torch.addcmul(second_half * cosines, first_half, sines)
