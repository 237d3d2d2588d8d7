"""Blocks and stacks: how sublayers, norms and residuals are joined (paper section 3.2).

Owns the order of a block and nothing of where keys and values come from: a decoder block asks the attention
that it is handed, which is full attention in training (`FullAttention`), a cache when decoding.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from openba.recipes.architecture import Architecture

from .attention import attend
from .functions import PRODUCT
from .layers import MLP, CrossAttention, SelfAttention, make_norm, make_out_norm
from .rows import Rows


class DecoderAttention(Protocol):
    """Where a decoder block's queries look. All tensors are `[tokens, heads, kv]`."""

    def own(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to this side's tokens up to each query's own."""
        ...

    def cross(self, layer: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the encoder's output, which `projection` turns into keys and values."""
        ...


class FullAttention:
    """All positions at once: training and scoring."""

    def __init__(
        self,
        rows: Rows,
        encoded: Tensor,
        memory: Rows,
        dropout: float,
        stream: int | None = None,
        recompute: bool = False,
    ) -> None:
        """Rows of queries and of the encoder's output `encoded`; the others are `attend`'s."""
        self.rows, self.encoded, self.memory = rows, encoded, memory
        self.options: dict[str, Any] = {"dropout": dropout, "stream": stream, "recompute": recompute}

    def own(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention within each row."""
        return attend(query, key, value, self.rows, self.rows, causal=True, **self.options)

    def cross(self, layer: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attention to the row's encoder tokens."""
        key, value = projection.memory(self.encoded)
        return attend(query, key, value, self.rows, self.memory, **self.options)


class EncoderBlock(nn.Module):
    """Self-attention and SwiGLU, each behind a norm; the sandwich norm on attention's output."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = make_norm(architecture), SelfAttention(architecture)
        self.self_attn_norm = make_out_norm(architecture)
        self.post_attn_layernorm, self.mlp = make_norm(architecture), MLP(architecture)
        self.dropout, self.attention_dropout = (
            nn.Dropout(architecture.hidden_dropout),
            architecture.attention_dropout,
        )
        self.recompute_attention = False
        self.stream: int | None = None

    def forward(self, x: Tensor, rotary: Tensor, rows: Rows) -> Tensor:
        """`[tokens, hidden]` to the same."""
        query, key, value = self.self_attn.project(self.input_layernorm(x), rotary)
        dropout = self.attention_dropout if self.training else 0.0
        options: dict[str, Any] = {
            "stream": self.stream,
            "recompute": self.recompute_attention and self.training,
        }
        mixed = attend(query, key, value, rows, rows, dropout=dropout, **options)
        x = x + self.dropout(self.self_attn_norm(self.self_attn.o(mixed.flatten(1))))
        return x + self.dropout(self.mlp(self.post_attn_layernorm(x)))


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention and SwiGLU, each behind a norm."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = make_norm(architecture), SelfAttention(architecture)
        self.self_attn_norm = make_out_norm(architecture)
        self.post_attn_layernorm, self.inter_attn = make_norm(architecture), CrossAttention(architecture)
        self.inter_attn_norm = make_out_norm(architecture)
        self.post_inter_attn_layernorm, self.mlp = make_norm(architecture), MLP(architecture)
        self.dropout = nn.Dropout(architecture.hidden_dropout)

    def forward(self, x: Tensor, rotary: Tensor, layer: int, attention: DecoderAttention) -> Tensor:
        """`[tokens, hidden]` to the same; `layer` is this block's number, for caches."""
        mixed = attention.own(layer, *self.self_attn.project(self.input_layernorm(x), rotary))
        x = x + self.dropout(self.self_attn_norm(self.self_attn.o(mixed.flatten(1))))
        query = self.inter_attn.query(self.post_attn_layernorm(x))
        mixed = attention.cross(layer, query, self.inter_attn)
        x = x + self.dropout(self.inter_attn_norm(self.inter_attn.o(mixed.flatten(1))))
        return x + self.dropout(self.mlp(self.post_inter_attn_layernorm(x)))


def _products_kept() -> tuple[Any, Any]:
    """Matrix products and attention, nearly all of a block's work, are kept; the rest is done again."""
    aten = torch.ops.aten
    kept = [
        *(aten.mm.default, aten.addmm.default, aten._scaled_dot_product_flash_attention_for_cpu.default),
        *(aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_cudnn_attention.default),
        aten._scaled_dot_product_efficient_attention.default,
        *([] if PRODUCT is None else [PRODUCT]),
    ]
    return create_selective_checkpoint_contexts(kept)


class _Stack(nn.Module):
    """What encoder and decoder share: blocks, a last norm, recomputation of blocks in the backward pass."""

    def __init__(self, blocks: list[nn.Module], architecture: Architecture) -> None:
        super().__init__()
        self.block, self.final_layernorm = nn.ModuleList(blocks), make_norm(architecture)
        self.gradient_checkpointing, self.keeps_products = False, False
        for module in self.modules():
            if isinstance(module, SelfAttention | CrossAttention | MLP):
                back = module.fc_out if isinstance(module, MLP) else module.o
                back.residual_scale = (2 * len(blocks)) ** -0.5  # of its initial values

    def _run(self, block: nn.Module, *arguments: Any) -> Tensor:
        if not (self.gradient_checkpointing and self.training):
            return block(*arguments)
        # Only the form without re-entrance sees the encoder's output inside `attention`.
        if self.keeps_products:
            return checkpoint(block, *arguments, use_reentrant=False, context_fn=_products_kept)
        return checkpoint(block, *arguments, use_reentrant=False)


class Encoder(_Stack):
    """The encoder's blocks."""

    main_input_name = "input_ids"  # transformers' `generate` asks a model's `encoder` for it

    def __init__(self, architecture: Architecture) -> None:
        super().__init__([EncoderBlock(architecture) for _ in range(architecture.num_layers)], architecture)

    def forward(self, x: Tensor, rotary: Tensor, rows: Rows) -> Tensor:
        """Embedded tokens `[tokens, hidden]` to the encoder's output, same shape."""
        for block in self.block:
            x = self._run(block, x, rotary, rows)
        return self.final_layernorm(x)


class Decoder(_Stack):
    """The decoder's blocks."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(
            [DecoderBlock(architecture) for _ in range(architecture.num_decoder_layers)], architecture
        )

    def forward(self, x: Tensor, rotary: Tensor, attention: DecoderAttention) -> Tensor:
        """Embedded tokens `[tokens, hidden]` to hidden states, same shape."""
        for layer, block in enumerate(self.block):
            x = self._run(block, x, rotary, layer, attention)
        return self.final_layernorm(x)
