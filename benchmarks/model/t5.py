"""Peer of the model's figures: transformers' T5 with the same dimensions, eager, fused and compiled.

`gated-silu`, tied embeddings, no dropout; eager and fused (SDPA) attention, each also compiled where a C++
compiler is installed. The parameter counts differ by norms and position biases only.
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


def t5(architecture: Architecture, attention: str) -> T5ForConditionalGeneration:
    """Return a T5 of these dimensions with `eager` or `sdpa` attention."""
    config_type: Any = T5Config  # its annotations lack the fields that all configurations have
    config = config_type(
        vocab_size=architecture.vocab_size,
        d_model=architecture.hidden_size,
        d_kv=architecture.kv_channels,
        d_ff=architecture.ffn_inner,
        num_layers=architecture.num_layers,
        num_decoder_layers=architecture.num_decoder_layers,
        num_heads=architecture.num_heads,
        feed_forward_proj="gated-silu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
    )
    return T5ForConditionalGeneration._from_config(config, attn_implementation=attention)


def variants(architecture: Architecture, *, dynamic: bool) -> dict[str, T5ForConditionalGeneration]:
    """Return T5 in its variants by name.

    Args:
        architecture: dimensions.
        dynamic: compile for changing lengths, as in generation.
    """
    models = {f"T5 {attention}": t5(architecture, attention) for attention in ("eager", "sdpa")}
    # torch.compile needs a C++ compiler on CPUs.
    if shutil.which("g++"):
        for attention in ("eager", "sdpa"):
            model = t5(architecture, attention)
            model.forward = torch.compile(model.forward, dynamic=dynamic or None)
            models[f"T5 {attention} compiled"] = model
    return models


def cache() -> EncoderDecoderCache:
    """Return an empty cache; T5's default one has as many layers as the encoder, too few for our decoder."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())
