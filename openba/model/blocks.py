"""Blocks and stacks: how sublayers, norms and residuals are joined (paper section 3.2).

Owns the order of a block, and nothing of the source of keys and values: a decoder block asks the attention
that it is handed, which covers all positions in training (`FullAttention`) and reads a cache in decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor, device, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from openba.model.attention import attend, attention_for
from openba.model.kernels import kernels_for
from openba.model.layers import MLP, CrossAttention, SelfAttention, make_norm, make_output_norm
from openba.model.rows import Rows
from openba.recipes.architecture import Architecture


class EncoderAttention(Protocol):
    """Attention that encoder blocks ask. All tensors are `[tokens, heads, kv]`."""

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to all tokens of the row."""
        ...


class DecoderAttention(Protocol):
    """Source of keys and values for decoder blocks. All tensors are `[tokens, heads, kv]`."""

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the decoder's tokens up to each query's position."""
        ...

    def attend_cross(self, layer_index: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the encoder's output, which `projection` turns into keys and values."""
        ...


class SourceAttention:
    """Attention of the encoder's tokens to each other."""

    def __init__(
        self, rows: Rows, dropout: float = 0.0, dropout_stream: int | None = None, recompute: bool = False
    ) -> None:
        """Take the layout of the tokens; the rest is as in `attend`."""
        self.rows = rows
        self.dropout = dropout
        self.dropout_stream = dropout_stream
        self.recompute = recompute

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within each row."""
        return attend(
            query, key, value, self.rows, self.rows,
            dropout=self.dropout, dropout_stream=self.dropout_stream, recompute=self.recompute,
        )  # fmt: skip


class FullAttention:
    """Attention over all positions at once, for training and scoring."""

    def __init__(
        self,
        target_rows: Rows,
        encoder_output: Tensor,
        source_rows: Rows,
        dropout: float,
        dropout_stream: int | None = None,
        recompute: bool = False,
    ) -> None:
        """Take the layouts of queries and of the encoder's output; the rest is as in `attend`."""
        self.target_rows = target_rows
        self.encoder_output = encoder_output
        self.source_rows = source_rows
        self.dropout = dropout
        self.dropout_stream = dropout_stream
        self.recompute = recompute

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend causally within each row."""
        return self._attend(query, key, value, self.target_rows, causal=True)

    def attend_cross(self, layer_index: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the row's encoder tokens."""
        key, value = projection.memory(self.encoder_output)
        return self._attend(query, key, value, self.source_rows, causal=False)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, key_rows: Rows, causal: bool) -> Tensor:
        return attend(
            query, key, value, self.target_rows, key_rows,
            causal=causal, dropout=self.dropout, dropout_stream=self.dropout_stream, recompute=self.recompute,
        )  # fmt: skip


class EncoderBlock(nn.Module):
    """Self-attention and SwiGLU, each behind a norm; the sandwich norm on attention's output."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm = make_norm(architecture)
        self.self_attn = SelfAttention(architecture)
        self.self_attn_norm = make_output_norm(architecture)
        self.post_attn_layernorm = make_norm(architecture)
        self.mlp = MLP(architecture)
        self.dropout = nn.Dropout(architecture.hidden_dropout)

    def forward(
        self, hidden_states: Tensor, rotary_angles: Tensor, layer_index: int, attention: EncoderAttention
    ) -> Tensor:
        """`[tokens, hidden]` to the same."""
        # Pre-norm: the residual stream itself is never normalised between blocks.
        query, key, value = self.self_attn.project(self.input_layernorm(hidden_states), rotary_angles)
        attention_output = attention.attend_self(layer_index, query, key, value)
        # The sandwich norm bounds what attention adds to the stream (paper section 3.2); released weights
        # have none, and the norm is the identity.
        sublayer_output = self.self_attn_norm(self.self_attn.output(attention_output))
        hidden_states = hidden_states + self.dropout(sublayer_output)
        return hidden_states + self.dropout(self.mlp(self.post_attn_layernorm(hidden_states)))


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention and SwiGLU, each behind a norm."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm = make_norm(architecture)
        self.self_attn = SelfAttention(architecture)
        self.self_attn_norm = make_output_norm(architecture)
        self.post_attn_layernorm = make_norm(architecture)
        self.inter_attn = CrossAttention(architecture)
        self.inter_attn_norm = make_output_norm(architecture)
        self.post_inter_attn_layernorm = make_norm(architecture)
        self.mlp = MLP(architecture)
        self.dropout = nn.Dropout(architecture.hidden_dropout)

    def forward(
        self, hidden_states: Tensor, rotary_angles: Tensor, layer_index: int, attention: DecoderAttention
    ) -> Tensor:
        """`[tokens, hidden]` to the same; caches find their layer by `layer_index`."""
        query, key, value = self.self_attn.project(self.input_layernorm(hidden_states), rotary_angles)
        attention_output = attention.attend_self(layer_index, query, key, value)
        sublayer_output = self.self_attn_norm(self.self_attn.output(attention_output))
        hidden_states = hidden_states + self.dropout(sublayer_output)

        # The encoder's output is normalised once, at the end of its stack: keys and values need no norm here.
        query = self.inter_attn.query(self.post_attn_layernorm(hidden_states))
        attention_output = attention.attend_cross(layer_index, query, self.inter_attn)
        sublayer_output = self.inter_attn_norm(self.inter_attn.output(attention_output))
        hidden_states = hidden_states + self.dropout(sublayer_output)

        return hidden_states + self.dropout(self.mlp(self.post_inter_attn_layernorm(hidden_states)))


def _vary(hidden_states: Tensor, rotary_angles: Tensor | None, rows: Rows) -> None:
    """Tell torch.compile which sizes differ from batch to batch; it would find out by compiling again."""
    from torch._dynamo import maybe_mark_dynamic  # slow to load, and only compiled blocks need it

    maybe_mark_dynamic(hidden_states, 0)
    maybe_mark_dynamic(rows.offsets, 0)
    if rotary_angles is not None:
        maybe_mark_dynamic(rotary_angles, 1)


def _save_products_and_attention(on_device: device) -> tuple[Any, Any]:
    """Keep matrix products and attention, nearly all of a block's work; compute the rest again."""
    products = kernels_for(on_device).saved_operations
    kernels = attention_for(on_device).saved_operations
    return create_selective_checkpoint_contexts([*products, *kernels])


class _Stack(nn.Module):
    """Blocks and a last norm; recomputation of blocks in the backward pass."""

    def __init__(self, blocks: list[nn.Module], architecture: Architecture) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.final_layernorm = make_norm(architecture)
        self.gradient_checkpointing = False
        self.saves_products = False
        self.is_compiled = False
        # Projections back into the residual stream start smaller, by the stack's depth (see `initialise`).
        for module in self.modules():
            if isinstance(module, SelfAttention | CrossAttention | MLP):
                projection = module.fc_out if isinstance(module, MLP) else module.o
                projection.residual_scale = (2 * len(blocks)) ** -0.5

    def compile_blocks(self, backend: str | Callable[..., object]) -> None:
        """Compile the blocks by a backend of torch.compile, see `OpenBAModel.compile_blocks`."""
        self.is_compiled = True
        for block in self.block:
            block.compile(backend=backend, fullgraph=True)

    def forward(
        self,
        hidden_states: Tensor,
        rotary_angles: Tensor,
        attention: EncoderAttention | DecoderAttention,
        record: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Embedded tokens `[tokens, hidden]` to the stack's normalised output, same shape.

        Args:
            hidden_states: embedded tokens.
            rotary_angles: of the tokens, see `Seq2Seq.rotary_angles`.
            attention: as the stack's blocks want it.
            record: called with each block's input; returns what the block takes in its place.
        """
        if self.is_compiled and isinstance(attention, SourceAttention):
            _vary(hidden_states, rotary_angles, attention.rows)
        if self.is_compiled and isinstance(attention, FullAttention):
            _vary(hidden_states, rotary_angles, attention.target_rows)
            _vary(attention.encoder_output, None, attention.source_rows)
        # The number goes along for caches; attention over all positions ignores it.
        for layer_index, block in enumerate(self.block):
            if record is not None:
                hidden_states = record(hidden_states)
            hidden_states = self._run(block, hidden_states, rotary_angles, layer_index, attention)
        return self.final_layernorm(hidden_states)

    def _run(self, block: nn.Module, hidden_states: Tensor, *arguments: Any) -> Tensor:
        # Evaluation keeps nothing for a backward pass, so there is nothing to recompute. A compiled block
        # keeps products and computes the elementwise rest again by itself.
        chooses_itself = self.is_compiled and self.saves_products
        if not (self.gradient_checkpointing and self.training) or chooses_itself:
            return block(hidden_states, *arguments)
        # Only the form without re-entrance sees the encoder's output inside `attention`.
        if self.saves_products:
            context_fn = partial(_save_products_and_attention, hidden_states.device)
            return checkpoint(block, hidden_states, *arguments, use_reentrant=False, context_fn=context_fn)
        return checkpoint(block, hidden_states, *arguments, use_reentrant=False)


class Encoder(_Stack):
    """The encoder's blocks."""

    main_input_name = "input_ids"  # transformers' `generate` asks a model's `encoder` for it

    def __init__(self, architecture: Architecture) -> None:
        super().__init__([EncoderBlock(architecture) for _ in range(architecture.num_layers)], architecture)


class Decoder(_Stack):
    """The decoder's blocks."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(
            [DecoderBlock(architecture) for _ in range(architecture.num_decoder_layers)], architecture
        )
