"""Samples of an objective: windows of text that are corrupted, or task pairs.

How windows are corrupted is their recipe's (`openba.recipes.train.WindowsRecipe`), so a new objective of this
kind is one recipe class, and nothing here changes.
"""

from __future__ import annotations

from pathlib import Path

from openba.data.instruct import Pairs
from openba.data.store import TokenStore
from openba.recipes.train import TrainRecipe, WindowsRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import DenoisedSamples, PairSamples, Samples


def training_samples(recipe: TrainRecipe, data: Path, part: str | None, tokenizer: Tokenizer) -> Samples:
    """Return the samples that are trained on: windows of `part` of a mixture, or the pairs of a task mix."""
    if isinstance(recipe.data, WindowsRecipe):
        assert part is not None  # `PipelineConfig` refuses a stage that reads a mixture and names no part
        return DenoisedSamples(TokenStore(data / part), recipe.data, tokenizer)
    return PairSamples(Pairs(data, "train"))


def heldout_groups(recipe: TrainRecipe, data: Path, tokenizer: Tokenizer) -> dict[str, Samples]:
    """Return the samples that are measured on, by name: R, S and X apart for UL2, else one group `loss`."""
    # The held-out part is the same for all stages, so their losses on it compare.
    if isinstance(recipe.data, WindowsRecipe):
        windows = TokenStore(data / "heldout")
        recipes = recipe.data.by_mode()
        return {name: DenoisedSamples(windows, each, tokenizer) for name, each in recipes.items()}
    return {"loss": PairSamples(Pairs(data, "heldout"))}


def measured_modes(recipe: TrainRecipe, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the first encoder id of each denoiser's samples, where losses are measured by denoiser."""
    if not isinstance(recipe.data, WindowsRecipe):
        return {}
    return {mode: tokenizer.mode(mode) for mode in recipe.data.by_mode() if mode != "loss"}
