"""A model in CTranslate2's form, for decoding in int8 or fp32 by that engine's own kernels.

CTranslate2's Transformer covers the released form and its relatives: norm before each sublayer, rotary
self-attention, SwiGLU, biases, LayerNorm or RMSNorm. It cannot say the paper's sandwich norm (section 3.2),
whose second norm stands behind attention layers only: its own has one behind the feed-forward layer too.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from ctranslate2.specs import attention_spec, common_spec, transformer_spec
from torch import Tensor, nn

from openba.errors import UserError
from openba.model.blocks import Decoder, DecoderBlock, Encoder, EncoderBlock
from openba.model.layers import MLP, CrossAttention, SelfAttention
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.architecture import Architecture
from openba.tokenizer.tokenizer import Tokenizer

QUANTIZATIONS = ("float32", "float16", "bfloat16", "int8", "int8_float16", "int8_bfloat16", "int16")


def write_ctranslate2(folder: Path, out: Path, quantization: str) -> Architecture:
    """Convert a model's folder; returns the model's shape.

    Args:
        folder: a model's folder, read by `load_model`.
        out: made; must not exist.
        quantization: one of `QUANTIZATIONS`; int8 quantizes each row of the linear layers and embeddings.

    Raises:
        UserError: the model has a sandwich norm; `quantization` is unknown; see `load_model`.
    """
    if quantization not in QUANTIZATIONS:
        raise UserError(f"quantization: {quantization!r} is unknown; take one of {', '.join(QUANTIZATIONS)}")
    model, tokenizer = load_model(folder)
    if model.architecture.sandwich_norm:
        raise UserError(
            f"{folder}: sandwich_norm is true, and CTranslate2 has no norm behind attention alone; "
            "export in safetensors, or train with model.sandwich=false"
        )
    specification = make_specification(model.float(), tokenizer)
    specification.validate()
    specification.optimize(quantization=quantization)
    out.mkdir(parents=True)
    specification.save(str(out))
    return model.architecture


def make_specification(model: OpenBAModel, tokenizer: Tokenizer) -> transformer_spec.TransformerSpec:
    """Return the model's weights as a CTranslate2 specification, its vocabulary the tokenizer's pieces."""
    architecture = model.architecture
    shared = {
        "num_heads": architecture.num_heads,
        "pre_norm": True,
        "activation": common_spec.Activation.SWISH,
        "ffn_glu": True,
        "rms_norm": architecture.norm == "rmsnorm",
        "rotary_dim": architecture.kv_channels,
        "rotary_interleave": False,
        "rotary_base": architecture.rope_theta,
        "head_dim": architecture.kv_channels,
        "num_heads_kv": architecture.num_heads,
    }
    encoder = transformer_spec.TransformerEncoderSpec(architecture.num_layers, **shared)
    decoder = transformer_spec.TransformerDecoderSpec(architecture.num_decoder_layers, **shared)
    delattr(encoder, "position_encodings")  # rotary positions take the place of added ones
    specification = transformer_spec.TransformerSpec(encoder, decoder)
    _set_stack(encoder, model.encoder, encoder.embeddings[0], model)
    _set_stack(decoder, model.decoder, decoder.embeddings, model)
    _set_linear(decoder.projection, model.head_weight, model.lm_head.bias)
    vocabulary = vocabulary_of(tokenizer, architecture)
    specification.register_source_vocabulary(vocabulary)
    specification.register_target_vocabulary(vocabulary)
    config = specification.config
    config.layer_norm_epsilon = architecture.layer_norm_epsilon
    config.unk_token = vocabulary[tokenizer.unknown]
    config.eos_token = vocabulary[tokenizer.eos]
    config.bos_token = vocabulary[tokenizer.pad]
    config.decoder_start_token = vocabulary[tokenizer.pad]
    config.add_source_bos = False
    config.add_source_eos = False
    return specification


def vocabulary_of(tokenizer: Tokenizer, architecture: Architecture) -> list[str]:
    """Return one distinct name per row of the embedding: control tokens, pieces, and names for padding rows.

    A piece that is spelt like a control token gets a NUL before it, as in `OpenBATokenizer`.
    """
    control = {index: name for name, index in tokenizer.pieces.control_tokens().items()}
    names = []
    for index in range(tokenizer.size):
        piece = control.get(index) or tokenizer.pieces.piece(index)
        is_spelt_like_control = index not in control and piece in control.values()
        names.append(f"\0{piece}" if is_spelt_like_control else piece)
    return names + [f"<padding_{index}>" for index in range(tokenizer.size, architecture.vocab_size)]


def _set_stack(
    specification: transformer_spec.TransformerEncoderSpec | transformer_spec.TransformerDecoderSpec,
    stack: Encoder | Decoder,
    embeddings: common_spec.EmbeddingsSpec,
    model: OpenBAModel,
) -> None:
    embeddings.weight = _array(model.shared_embedding.weight)
    specification.scale_embeddings = model.architecture.scale_embedding
    _set_norm(specification.layer_norm, stack.final_layernorm)
    blocks = cast(list[EncoderBlock | DecoderBlock], list(stack.block))
    for layer, block in zip(specification.layer, blocks, strict=True):
        _set_self_attention(layer.self_attention, block.self_attn)
        _set_norm(layer.self_attention.layer_norm, block.input_layernorm)
        before_mlp = block.post_attn_layernorm
        if isinstance(block, DecoderBlock):
            _set_cross_attention(layer.attention, block.inter_attn)
            _set_norm(layer.attention.layer_norm, block.post_attn_layernorm)
            before_mlp = block.post_inter_attn_layernorm
        _set_mlp(layer.ffn, block.mlp)
        _set_norm(layer.ffn.layer_norm, before_mlp)


def _set_self_attention(specification: attention_spec.MultiHeadAttentionSpec, layer: SelfAttention) -> None:
    """Set the projections; ours hold query, key and value per head, CTranslate2's one after another."""
    _set_linear(specification.linear[0], *_unpacked(layer.qkv, layer.num_heads, parts=3))
    _set_linear(specification.linear[1], layer.o.weight, layer.o.bias)


def _set_cross_attention(specification: attention_spec.MultiHeadAttentionSpec, layer: CrossAttention) -> None:
    _set_linear(specification.linear[0], layer.q.weight, layer.q.bias)
    _set_linear(specification.linear[1], *_unpacked(layer.kv, layer.num_heads, parts=2))
    _set_linear(specification.linear[2], layer.o.weight, layer.o.bias)


def _set_mlp(specification: transformer_spec.FeedForwardSpec, layer: MLP) -> None:
    gate, up = layer.fc_in.weight.chunk(2)
    _set_linear(specification.linear_0, gate, None)
    _set_linear(specification.linear_0_noact, up, None)
    _set_linear(specification.linear_1, layer.fc_out.weight, None)


def _unpacked(layer: nn.Linear, heads: int, parts: int) -> tuple[Tensor, Tensor | None]:
    """Reorder the outputs `[heads, parts, kv]` of a packed projection to `[parts, heads, kv]`."""
    weight = layer.weight.unflatten(0, (heads, parts, -1)).transpose(0, 1).flatten(0, 2)
    if layer.bias is None:
        return weight, None
    return weight, layer.bias.unflatten(0, (heads, parts, -1)).transpose(0, 1).flatten()


def _set_linear(specification: common_spec.LinearSpec, weight: Tensor, bias: Tensor | None) -> None:
    specification.weight = _array(weight)
    if bias is not None:
        specification.bias = _array(bias)


def _set_norm(specification: common_spec.LayerNormSpec, norm: nn.Module) -> None:
    """Set the weights of an RMSNorm, or of a LayerNorm with its bias."""
    parameters = dict(norm.named_parameters())
    specification.gamma = _array(parameters["weight"])
    if "bias" in parameters:
        specification.beta = _array(parameters["bias"])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
