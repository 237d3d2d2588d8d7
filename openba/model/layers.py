"""Parts of a block: norm, the two kinds of attention layer, the feed-forward layer.

Owns the weights of one sublayer, named and packed as the released checkpoints are (`qkv` holds query, key and
value per head, `fc_in` gate and up), so that nothing is converted on loading. How sublayers are joined is
`blocks.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn

from openba.model.kernels import kernels_for
from openba.recipes.architecture import Architecture


def linear(layer: nn.Module, hidden_states: Tensor) -> Tensor:
    """`[..., inputs]` to `[..., outputs]`, by the device kind's product where the layer is a plain one.

    The layers are `nn.Linear`, since quantisers and adapters look for that class. What stands in for one, or
    watches it by hooks, is called as any module is.
    """
    if is_plain(layer):
        return kernels_for(hidden_states.device).linear(hidden_states, layer.weight, layer.bias)
    return layer(hidden_states)


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling the layer does nothing but multiply by its weight and add its bias."""
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks
    has_gradient_hooks = layer._backward_hooks or layer._backward_pre_hooks
    # Offloading replaces `forward` of the instance; sharding and some quantisers the class of the weight.
    is_itself = type(layer) is nn.Linear and "forward" not in layer.__dict__
    return is_itself and not (has_hooks or has_gradient_hooks) and type(layer.weight) is nn.Parameter


def linear_layers(stack: nn.Module) -> Iterator[nn.Module]:
    """Yield the linear layers of the blocks below a module, or what stands in for them."""
    for module in stack.modules():
        if isinstance(module, SelfAttention | CrossAttention | MLP):
            yield from module.children()


class RMSNorm(nn.Module):
    """Root-mean-square norm (paper section 3.2)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        return kernels_for(hidden_states.device).rms_norm(hidden_states, self.weight, self.epsilon)


def make_norm(architecture: Architecture) -> nn.Module:
    """RMSNorm (paper section 3.2) or LayerNorm with bias (released weights)."""
    norm_class = RMSNorm if architecture.norm == "rmsnorm" else nn.LayerNorm
    return norm_class(architecture.hidden_size, architecture.layer_norm_epsilon)


def make_output_norm(architecture: Architecture) -> nn.Module:
    """Sandwich norm after an attention layer (paper section 3.2), or nothing."""
    return make_norm(architecture) if architecture.sandwich_norm else nn.Identity()


class SelfAttention(nn.Module):
    """Projections of self-attention; heads * kv_channels need not equal hidden_size."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        attention_width = architecture.attention_width
        has_bias = architecture.add_qkv_bias
        self.num_heads = architecture.num_heads
        self.kv_channels = architecture.kv_channels
        self.qkv = nn.Linear(architecture.hidden_size, 3 * attention_width, bias=has_bias)
        self.o = nn.Linear(attention_width, architecture.hidden_size, bias=has_bias)

    def project(self, hidden_states: Tensor, rotary_angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[tokens, hidden]` to query, key, value `[tokens, heads, kv]`, the first two rotated."""
        # One product for all three, packed per head as the released weight is.
        packed_qkv = linear(self.qkv, hidden_states).view(-1, self.num_heads, 3, self.kv_channels)
        return kernels_for(packed_qkv.device).split_rotate(packed_qkv, rotary_angles[0], rotary_angles[1])

    def output(self, attention_output: Tensor) -> Tensor:
        """`[tokens, heads, kv]` to `[tokens, hidden]`."""
        return linear(self.o, attention_output.flatten(1))


class CrossAttention(nn.Module):
    """Projections of cross-attention. No rotary positions, as in the release."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        attention_width = architecture.attention_width
        has_bias = architecture.add_qkv_bias
        self.num_heads = architecture.num_heads
        self.kv_channels = architecture.kv_channels
        self.q = nn.Linear(architecture.hidden_size, attention_width, bias=has_bias)
        self.kv = nn.Linear(architecture.hidden_size, 2 * attention_width, bias=has_bias)
        self.o = nn.Linear(attention_width, architecture.hidden_size, bias=has_bias)

    def output(self, attention_output: Tensor) -> Tensor:
        """`[tokens, heads, kv]` to `[tokens, hidden]`."""
        return linear(self.o, attention_output.flatten(1))

    def query(self, hidden_states: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, heads, kv]`."""
        return linear(self.q, hidden_states).view(-1, self.num_heads, self.kv_channels)

    def memory(self, encoder_output: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[source tokens, heads, kv]` of the encoder's output."""
        # Packed per head, key then value, as the release's `kv` weight is.
        packed_kv = linear(self.kv, encoder_output).view(-1, self.num_heads, 2, self.kv_channels)
        key, value = packed_kv.unbind(-2)
        return key, value


class MLP(nn.Module):
    """fc_out(silu(gate) * up) without biases (paper section 3.2); `fc_in` holds gate, then up."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.fc_in = nn.Linear(architecture.hidden_size, 2 * architecture.ffn_inner, bias=False)
        self.fc_out = nn.Linear(architecture.ffn_inner, architecture.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` to the same."""
        # One product for gate and up, as the released weight has them.
        gate_and_up = linear(self.fc_in, hidden_states)
        return linear(self.fc_out, kernels_for(gate_and_up.device).swiglu(gate_and_up))
