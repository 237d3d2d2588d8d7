"""Optimisers: how a recipe's is made, and which tensors it keeps for each parameter.

`AdamWOptimizer` and `MuonOptimizer` are the choices; a new one is a class here, a block of
`openba.recipes.train.OptimRecipe`, and its bytes in `openba.accounting.memory`. Adafactor is not among them:
ZeRO cuts a matrix into flat pieces, and its row and column sums need the matrix.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from openba.json_types import JsonObject
from openba.recipes.train import MuonRecipe, OptimRecipe

_ADAM_STATE = ("exp_avg", "exp_avg_sq")
_MUON_STATE = ("momentum_buffer",)
_VOCABULARY = ("shared_embedding", "lm_head")
"""Layers with a row a token: Muon leaves them to AdamW, as it does with vectors."""


class OptimizerChoice(Protocol):
    """One kind of optimiser."""

    def build(self, model: nn.Module, *, is_fused: bool) -> torch.optim.Optimizer:
        """Return the optimiser of the model's trained parameters.

        Args:
            model: what is trained, before DeepSpeed takes it.
            is_fused: AdamW by one kernel over weights, moments and gradients (CUDA).
        """
        ...


class AdamWOptimizer:
    """AdamW for all parameters (paper section 4.4)."""

    def __init__(self, recipe: OptimRecipe) -> None:
        """Take the recipe."""
        self.recipe = recipe

    def build(self, model: nn.Module, *, is_fused: bool) -> torch.optim.Optimizer:
        """See `OptimizerChoice`."""
        groups = _decay_groups(_trained(model), self.recipe.weight_decay)
        return torch.optim.AdamW(groups, fused=is_fused, **_adam_settings(self.recipe))


class MuonOptimizer:
    """Muon for the blocks' matrices, AdamW for embedding, head, norms and biases.

    A matrix moves along its momentum with all singular values brought near 1 by Newton-Schulz iterations
    (K. Jordan et al. 2024, "Muon: an optimizer for hidden layers"). DeepSpeed does it to whole matrices,
    after gradients are reduced and clipped. q, k and v of a self-attention are one matrix here.
    """

    def __init__(self, recipe: OptimRecipe, muon: MuonRecipe) -> None:
        """Take the recipe, and its part about Muon."""
        self.recipe = recipe
        self.muon = muon

    def build(self, model: nn.Module, *, is_fused: bool) -> torch.optim.Optimizer:
        """See `OptimizerChoice`."""
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            is_matrix = parameter.dim() == 2 and not name.startswith(_VOCABULARY)
            parameter.use_muon = is_matrix  # type: ignore[attr-defined] # where DeepSpeed looks for it
            (matrices if is_matrix else others).append(parameter)
        muon_group = {
            "params": matrices,
            "use_muon": True,
            "lr": self.muon.lr,
            "lr_ratio": self.muon.lr / self.recipe.lr,
            "momentum": self.muon.momentum,
            "weight_decay": self.recipe.weight_decay,
        }
        adam_groups = [
            {**group, "use_muon": False} for group in _decay_groups(others, self.recipe.weight_decay)
        ]
        return MuonWithAuxAdam(
            [muon_group, *adam_groups],
            adam_optimizer=torch.optim.AdamW,
            adam_optimizer_kwargs={"fused": is_fused, **_adam_settings(self.recipe)},
        )


def choose_optimizer(recipe: OptimRecipe) -> OptimizerChoice:
    """Return the optimiser that a recipe names."""
    return AdamWOptimizer(recipe) if recipe.muon is None else MuonOptimizer(recipe, recipe.muon)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group; Muon's follows the same schedule at its own height."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"] if "lr_ratio" in group else rate


def parameter_state(parameter: nn.Parameter) -> tuple[str, ...]:
    """Return the names of the tensors that are kept for a parameter, each of its shape."""
    return _MUON_STATE if getattr(parameter, "use_muon", False) else _ADAM_STATE


def group_state(group: JsonObject) -> tuple[str, ...]:
    """Return the names of the tensors that are kept for the parameters of an optimiser's group."""
    return _MUON_STATE if group.get("use_muon", False) else _ADAM_STATE


def _adam_settings(recipe: OptimRecipe) -> JsonObject:
    return {"lr": recipe.lr, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _decay_groups(trained: list[nn.Parameter], weight_decay: float) -> list[JsonObject]:
    """Return parameter groups without weight decay on biases and other vectors (release)."""
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    vectors = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # DeepSpeed takes no empty one
