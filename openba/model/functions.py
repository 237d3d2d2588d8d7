"""Differentiable functions that torch has in a slower form: RMSNorm, SwiGLU, rotation, products in fp32.

Each is one autograd node with a hand-written backward. torch has the first three as chains of elementwise
steps, each a trip through memory on a CPU. Measured on 2,048 x 512 fp32, forward and backward, one thread:
RMSNorm 5.0 ms against 19.6 ms for `torch.nn.functional.rms_norm`. Plain references and gradient checks are in
the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula

PRODUCT: Any = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
"""oneDNN's linear layer. torch multiplies fp32 by MKL, which uses short vectors on AMD: 115 GFLOP/s a core of
a Zen 5, oneDNN 255; with AVX2 alone 115 and 130."""


def _product_flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    """For torch's counter, which does not know the call."""
    return 2 * math.prod(x) * weight[0]


if PRODUCT is not None and torch.ops.mkldnn._linear_pointwise not in flop_registry:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_product_flops)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, PRODUCT(x, weight, bias, "none", [], ""))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        return (
            _product(grad, weight.T) if wants_x else None,
            _product(flat.T, x.reshape(-1, x.shape[-1]).T) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; for fp32 on a CPU by oneDNN."""
    fp32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if PRODUCT is None or not fp32 or x.device.type != "cpu" or not x.numel():
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return cast(Tensor, _Linear.apply(x, weight, bias))
    return _product(x, weight, bias)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        # LayerNorm's fused backward at mean 0 is RMSNorm's, less one term: it also centres the gradient.
        # That term is added back. RMSNorm's own kernel exists on CUDA only.
        wanted = [True, True, False]
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [x.shape[-1]], torch.zeros_like(inverse), inverse, weight, None, wanted
        )
        centred = torch.mv(grad.reshape(-1, x.shape[-1]), weight).div_(x.shape[-1]).view_as(inverse)
        return grad_x.add_(centred.mul_(inverse)), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension, computed in fp32 at least."""
    if not torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.rms_norm(x, (x.shape[-1],), weight, epsilon)
    return _RMSNorm.apply(x.contiguous(), weight, epsilon)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> Tensor:
        gate, up = packed.chunk(2, dim=-1)
        ctx.save_for_backward(packed)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (packed,) = ctx.saved_tensors
        gate, up = packed.chunk(2, dim=-1)
        result = torch.empty_like(packed)  # both halves are written in place: no concatenation
        grad_gate, grad_up = result.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grad, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return result


def swiglu(packed: Tensor) -> Tensor:
    """`silu(gate) * up` of `[..., gate | up]`, half as wide (paper section 3.2)."""
    if torch.is_grad_enabled():
        return _SwiGLU.apply(packed)
    gate, up = packed.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotate pairs (channel i with i + width / 2) in fp32 and store in `out`'s dtype."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    if x.dtype == cos.dtype:
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    else:
        out[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
        out[..., half:] = torch.addcmul(second * cos, first, sin)


class _SplitRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = packed.unbind(-2)
        turned = torch.empty_like(query), torch.empty_like(key)
        _turn(query, cos, sin, turned[0])
        _turn(key, cos, sin, turned[1])
        ctx.save_for_backward(cos, sin)
        return (*turned, value.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        grad = torch.empty((*value.shape[:-1], 3, value.shape[-1]), dtype=value.dtype, device=value.device)
        _turn(query, cos, -sin, grad[..., 0, :])
        _turn(key, cos, -sin, grad[..., 1, :])
        grad[..., 2, :] = value
        return grad, None, None


def split_rotate(packed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a packed projection, query and key rotated to their positions.

    Args:
        packed: `[tokens, heads, 3, kv]`, per head query, key, value, as the released weights are packed.
        cos: fp32 `[tokens, 1, kv / 2]`, see `rotary_table`.
        sin: The same.

    Returns:
        Three tensors `[tokens, heads, kv]` in `packed`'s dtype.
    """
    if torch.is_grad_enabled():
        return _SplitRotate.apply(packed, cos, sin)
    both = torch.empty_like(packed[..., :2, :])  # query and key in one go: generation counts calls
    _turn(packed[..., :2, :], cos.unsqueeze(-2), sin.unsqueeze(-2), both)
    return both[..., 0, :], both[..., 1, :], packed[..., 2, :]


def rotary_table(length: int, width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Cosines and sines `[2, length, 1, width / 2]`, always fp32: angles in half precision lose positions."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return torch.stack([angles.cos(), angles.sin()])[:, :, None]
