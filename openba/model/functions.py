"""Plain formulas of the model: RMSNorm, SwiGLU, rotation of queries and keys, the table of angles.

They run on every device and in every precision, autograd derives their gradients, and torch.compile can fuse
them. `kernels.py` chooses between them and what a device kind has instead.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

AutogradContext = Any
"""Context of an autograd function: torch types it without the attributes that a function may set."""


def rms_norm(hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension, computed in fp32 at least."""
    return F.rms_norm(hidden_states, (hidden_states.shape[-1],), weight, epsilon)


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Return `silu(gate) * up` of `[..., gate | up]`, half as wide (paper section 3.2)."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(hidden_states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate pairs (channel i with i + width / 2) in the precision of the angles; keep the input's dtype."""
    # Rotate-half as in the release, not interleaved pairs. fp32 angles times half-precision channels are
    # fp32, so nothing is rounded before the end.
    first_half, second_half = hidden_states.chunk(2, dim=-1)
    rotated_first = first_half * cosines - second_half * sines
    rotated_second = second_half * cosines + first_half * sines
    return torch.cat([rotated_first, rotated_second], dim=-1).to(hidden_states.dtype)


def split_rotate(packed_qkv: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a packed projection, query and key rotated to their positions.

    Args:
        packed_qkv: `[tokens, heads, 3, kv]`, per head query, key, value, as the released weights are packed.
        cosines: fp32 `[tokens, 1, kv / 2]`, see `rotary_table`.
        sines: The same.

    Returns:
        Three tensors `[tokens, heads, kv]` in the dtype of `packed_qkv`.
    """
    query, key, value = packed_qkv.unbind(-2)
    return rotate(query, cosines, sines), rotate(key, cosines, sines), value


def rotary_table(length: int, width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Cosines and sines `[2, length, 1, width / 2]`, always fp32: angles in half precision lose positions."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return torch.stack([angles.cos(), angles.sin()])[:, :, None]
