"""A model from its folder: all of its weights, or an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path

import torch

from openba.errors import UserError
from openba.model.adapter_base import is_adapter
from openba.model.files import load_architecture, load_weights, restore
from openba.model.model import OpenBAModel
from openba.tokenizer.tokenizer import Tokenizer


def load_model(folder: Path) -> tuple[OpenBAModel, Tokenizer]:
    """Load a model in evaluation mode, in the dtype of its weights, and its tokenizer. An adapter is merged.

    Raises:
        UserError: see `openba.model.files`; the tokenizer has more ids than the embedding has rows; the base
            of an adapter is not there, or another one.
    """
    if is_adapter(folder):
        # Here: peft imports transformers, which takes seconds, and a whole model needs neither.
        from openba.model.adapter import load_adapted

        return load_adapted(folder)
    # No memory and no initial values: the tensors of the files become the parameters themselves.
    with torch.device("meta"):
        model = OpenBAModel(load_architecture(folder))
    restore(model, load_weights(folder), folder, assign=True)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.size > model.architecture.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.size} ids, the embedding "
            f"{model.architecture.vocab_size} rows; they do not belong together"
        )
    return model.eval(), tokenizer
