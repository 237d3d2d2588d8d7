"""Exact parameters of a model by part: counted on modules without memory, and checked by formula."""

from __future__ import annotations

import torch

from openba.accounting.flops import parameters
from openba.errors import UserError
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe


def count_parameters(model: ModelRecipe, vocab: int) -> dict[str, int]:
    """Parameters by part (embedding, encoder, decoder, norms, head), and `total`.

    Args:
        model: the shape.
        vocab: ids of the tokenizer.

    Raises:
        UserError: the modules and `openba.accounting.flops.parameters` disagree.
    """
    with torch.device("meta"):
        built = OpenBAModel(model.architecture(vocab))
    counted = dict.fromkeys(("embedding", "encoder", "decoder", "norms", "head"), 0)
    for name, parameter in built.named_parameters():
        counted[_part(name)] += parameter.numel()
    if counted != (formula := parameters(model, vocab)):
        raise UserError(
            f"parameters: modules {counted}, formula {formula}; they must agree, please report it"
        )
    return counted | {"total": sum(counted.values())}


def _part(name: str) -> str:
    if "norm" in name:
        return "norms"
    return {"shared_embedding": "embedding", "lm_head": "head"}.get(head := name.split(".")[0], head)
