"""The parts of a block: norm, the two kinds of attention layer, the feed-forward layer.

Owns the weights of one sublayer, named and packed as the released checkpoints are (`qkv` holds query, key and
value per head, `fc_in` gate and up), so that nothing is converted on loading. How sublayers are joined is
`blocks.py`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openba.recipes.architecture import Architecture

from .functions import linear, rms_norm, split_rotate, swiglu


class Linear(nn.Linear):
    """torch's, with the faster product where there is one."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        return linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm (paper section 3.2)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        return rms_norm(x, self.weight, self.epsilon)


def make_norm(architecture: Architecture) -> nn.Module:
    """RMSNorm (paper section 3.2) or LayerNorm with bias (released weights)."""
    kind = RMSNorm if architecture.norm == "rmsnorm" else nn.LayerNorm
    return kind(architecture.hidden_size, architecture.layer_norm_epsilon)


def make_out_norm(architecture: Architecture) -> nn.Module:
    """The paper's sandwich norm behind an attention layer, or nothing."""
    return make_norm(architecture) if architecture.sandwich_norm else nn.Identity()


class SelfAttention(nn.Module):
    """Projections of self-attention; heads * kv_channels need not equal hidden_size."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, bias = architecture.attention_width, architecture.add_qkv_bias
        self.num_heads, self.kv_channels = architecture.num_heads, architecture.kv_channels
        self.qkv = Linear(architecture.hidden_size, 3 * width, bias=bias)
        self.o = Linear(width, architecture.hidden_size, bias=bias)

    def project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[tokens, hidden]` to query, key, value `[tokens, heads, kv]`, the first two rotated."""
        packed = self.qkv(x).view(-1, self.num_heads, 3, self.kv_channels)
        return split_rotate(packed, rotary[0], rotary[1])


class CrossAttention(nn.Module):
    """Projections of cross-attention. No rotary positions, as in the release."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, bias = architecture.attention_width, architecture.add_qkv_bias
        self.num_heads, self.kv_channels = architecture.num_heads, architecture.kv_channels
        self.q = Linear(architecture.hidden_size, width, bias=bias)
        self.kv = Linear(architecture.hidden_size, 2 * width, bias=bias)
        self.o = Linear(width, architecture.hidden_size, bias=bias)

    def query(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, heads, kv]`."""
        return self.q(x).view(-1, self.num_heads, self.kv_channels)

    def memory(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[memory tokens, heads, kv]` of the encoder's output."""
        key, value = self.kv(encoded).view(-1, self.num_heads, 2, self.kv_channels).unbind(-2)
        return key, value


class MLP(nn.Module):
    """fc_out(silu(gate) * up) without biases (paper section 3.2); `fc_in` holds gate, then up."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.fc_in = Linear(architecture.hidden_size, 2 * architecture.ffn_inner, bias=False)
        self.fc_out = Linear(architecture.ffn_inner, architecture.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` to the same."""
        return self.fc_out(swiglu(self.fc_in(x)))
