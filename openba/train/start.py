"""Weights that a training begins with, read from another model's folder and checked against its own model.

Owns what has to agree (shape, vocabulary, tokenizer) and what need not (dropout, positions, a tied head, the
precision). Which folder it is follows from the step's inputs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openba.errors import UserError
from openba.model.adapter_base import is_adapter, whole_base_of
from openba.model.files import (
    EMBEDDING,
    HEAD,
    fitting,
    load_architecture,
    load_weights,
)
from openba.model.grown_rows import grow_rows
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.architecture import Architecture
from openba.tokenizer.tokenizer import Tokenizer

RECIPE_KEYS = {
    "hidden_size": "d_model",
    "kv_channels": "kv_channels",
    "num_heads": "num_heads",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "ffn_inner": "ffn",
    "norm": "norm",
    "sandwich_norm": "sandwich",
    "layer_norm_epsilon": "norm_eps",
    "add_qkv_bias": "attention_bias",
    "add_lm_head_bias": "head_bias",
    "scale_embedding": "scale_embedding",
    "rope_theta": "rope_base",
    "vocab_size": "vocab_multiple",
}
"""What weights and model must have in common, and the key of `model` that sets it."""


def start_weights(folder: Path, architecture: Architecture, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return the weights of a model's folder, as a model of `architecture` takes them.

    Args:
        folder: of the model to begin with.
        architecture: of the model that is trained.
        tokenizer: that it is trained with.

    Raises:
        UserError: shape, vocabulary or tokenizer differ; see also `load_weights` and `fitting`.
    """
    start_tokenizer = Tokenizer.load(folder)
    check_tokenizer(start_tokenizer, tokenizer, folder)
    start_shape = load_architecture(whole_base_of(folder))
    is_grown = tokenizer.size > start_tokenizer.size
    if is_grown:  # other rows are added below; as many as the model has
        start_shape = replace(start_shape, vocab_size=architecture.vocab_size)
    check_shape(start_shape, architecture, folder)
    start_tensors = load_model(folder)[0].state_dict() if is_adapter(folder) else load_weights(folder)
    if not architecture.tie_word_embeddings:
        start_tensors.setdefault(HEAD, start_tensors[EMBEDDING])  # of a tied model
    if is_grown:
        start_tensors = grow_rows(start_tensors, start_tokenizer, tokenizer, architecture.vocab_size)
    # Names and shapes only: the full model of 15B parameters is 58 GB in fp32.
    with torch.device("meta"):
        empty_model = OpenBAModel(architecture)
    return fitting(empty_model, start_tensors, folder)


def check_shape(start_shape: Architecture, model_shape: Architecture, start_folder: Path) -> None:
    """Refuse weights of another shape.

    Raises:
        UserError: names the first difference and the key that sets it.
    """
    for name, key in RECIPE_KEYS.items():
        start_value = getattr(start_shape, name)
        model_value = getattr(model_shape, name)
        if start_value != model_value:
            raise UserError(
                f"{start_folder}: its weights have {name} {start_value}, and the model to train has "
                f"{model_value}; set model.{key} to what the weights have, or take other weights"
            )


def check_tokenizer(start_tokenizer: Tokenizer, model_tokenizer: Tokenizer, start_folder: Path) -> None:
    """Refuse weights that were trained with another tokenizer: their rows would stand for other words.

    Raises:
        UserError: the files or the whitespace tokens differ, or tokens that were added to the weights' lack
            in the pipeline's. It may have more.
    """
    is_same_file = start_tokenizer.path.read_bytes() == model_tokenizer.path.read_bytes()
    goes_on = model_tokenizer.grown[: len(start_tokenizer.grown)] == start_tokenizer.grown
    if not (is_same_file and start_tokenizer.whitespace == model_tokenizer.whitespace and goes_on):
        raise UserError(
            f"{start_folder}: the weights' tokenizer ({start_tokenizer.size} ids) is not the pipeline's "
            f"({model_tokenizer.size} ids); take theirs with tokenizer.kind=weights"
        )
