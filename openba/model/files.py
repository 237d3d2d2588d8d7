"""A model on disk: `config.json`, `model.safetensors` and the tokenizer file, in one folder.

Owns the exported form that stages hand to each other and that the registry points to. Loading
never unpickles: weights are safetensors, everything else is JSON.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.model import OpenBAModel
from openba.model.pieces_openba import MODEL_FILE
from openba.recipes.model import ModelRecipe

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_model(folder: Path, weights: dict[str, Tensor], model: OpenBAModel, tokenizer: Path) -> None:
    """Write weights (any dtype), shape and tokenizer. `tokenizer` is a tokenizer step's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": model.recipe.model_dump(), "vocab": model.vocab, "max_length": model.max_length}
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, folder / WEIGHTS)
    shutil.copyfile(tokenizer / MODEL_FILE, folder / MODEL_FILE)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an exported model.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS}: not readable ({error}); rebuild the step that wrote it"
        ) from None


def load_model(folder: Path) -> tuple[OpenBAModel, Tokenizer]:
    """An exported model in evaluation mode, in the dtype of its weights, and its tokenizer."""
    config = json.loads((folder / CONFIG).read_text())
    with torch.device("meta"):
        model = OpenBAModel(ModelRecipe(**config["model"]), config["vocab"], config["max_length"])
    weights = load_weights(folder)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval(), Tokenizer.load(folder)
