"""The peer of the model's figures: transformers' T5 with the same dimensions, in every form worth having.

`gated-silu`, tied embeddings, no dropout; eager and fused (SDPA) attention, each also compiled where a C++
compiler is there. The parameter counts differ by norms and position biases only.
"""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration

from openba.recipes.architecture import Architecture

warnings.filterwarnings("ignore", module="torch._inductor")
warnings.filterwarnings("ignore", module="torch._dynamo")


def t5(shape: Architecture, attention: str) -> T5ForConditionalGeneration:
    """A T5 of this shape with `eager` or `sdpa` attention."""
    make: Any = T5Config  # its type does not show the fields that all configs have
    config = make(
        vocab_size=shape.vocab_size,
        d_model=shape.hidden_size,
        d_kv=shape.kv_channels,
        d_ff=shape.ffn_inner,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_decoder_layers,
        num_heads=shape.num_heads,
        feed_forward_proj="gated-silu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
    )
    return T5ForConditionalGeneration._from_config(config, attn_implementation=attention)


def variants(shape: Architecture, *, dynamic: bool) -> dict[str, T5ForConditionalGeneration]:
    """The peer in its forms by name. `dynamic`: compiled for lengths that change, as in generation."""
    models = {f"T5 {attention}": t5(shape, attention) for attention in ("eager", "sdpa")}
    if shutil.which("g++"):
        for attention in ("eager", "sdpa"):
            model = t5(shape, attention)
            model.forward = torch.compile(model.forward, dynamic=dynamic or None)
            models[f"T5 {attention} compiled"] = model
    return models


def cache() -> EncoderDecoderCache:
    """What T5 needs when its decoder is deeper than its encoder: its own would have too few layers."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())
