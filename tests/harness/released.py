"""A folder in the released layout: fp16 weights, an own copy of the head, and the tokenizer beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from openba.model.files import write_released
from openba.model.model import OpenBAModel
from openba.recipes.architecture import Architecture
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

MODEL = {
    "d_model": 32, "num_heads": 2, "kv_channels": 16, "ffn": 96, "encoder_layers": 1, "decoder_layers": 2,
    "norm": "layernorm", "sandwich": False, "attention_bias": True, "head_bias": True,
    "scale_embedding": False, "positions": 192,
}  # fmt: skip
"""The release's form; as a recipe."""


def architecture(tokenizer: Tokenizer) -> Architecture:
    """Shape of the folder's model."""
    return ModelRecipe.model_validate(MODEL).architecture(tokenizer.size)


def write_folder(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    """Write a random model as published, with safetensors."""
    torch.manual_seed(seed)
    model = OpenBAModel(architecture(tokenizer))
    write_released(folder, model.state_dict(), model.architecture)
    shutil.copyfile(tokenizer.path, folder / "spiece.model")
    return folder


def to_bin_shards(folder: Path, weights: dict[str, Tensor], shards: int = 3) -> None:
    """Replace the safetensors of a folder by the `.bin` shards and the index that the release has."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    names = sorted(weights)
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = names[number::shards]
        torch.save({name: weights[name].clone() for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
