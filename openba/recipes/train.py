"""Recipes of training: objective, optimiser, budget. One shape for the three stages and all experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from openba.artifacts import Recipe
from openba.recipes.model import ModelRecipe
from openba.units import Budget, Steps


class DenoiserRecipe(Recipe):
    """One row of the paper's Table 3."""

    mode: Literal["R", "S", "X"]
    mean_span: int | None = None
    """Mean tokens of a masked span; none for S, which masks the end."""
    ratio: float
    """Share of tokens masked."""

    @model_validator(mode="after")
    def _spans(self) -> DenoiserRecipe:
        if (self.mode == "S") != (self.mean_span is None):
            raise ValueError("R and X need mean_span, S has none")
        return self

    def longest(self, length: int, s_length: str) -> tuple[int, int]:
        """Most encoder and target tokens of a sample, special tokens included (see `openba.data.denoise`)."""
        masked = max(1, round(length * self.ratio))
        if self.mean_span is None:
            return length - (1 if s_length == "uniform" else masked) + 3, masked + 2
        spans = max(1, round(masked / self.mean_span))
        return length - masked + spans + 2, masked + spans + 1


class UL2Recipe(Recipe):
    """Stage I: a mixture of denoisers, one per sample (paper section 3.3, Table 3)."""

    objective: Literal["ul2"]
    length: int
    """Tokens of one sample before corruption. 568 gives the paper's 570 encoder tokens."""
    denoisers: tuple[DenoiserRecipe, ...]
    """Drawn uniformly per sample, as the release does (1/7 each)."""
    s_length: Literal["fixed", "uniform"] = "fixed"
    """Masked tail of S: `fixed` at its ratio (paper), or uniform in 1..ratio (release)."""

    @property
    def longest(self) -> tuple[int, int]:
        """Most encoder and target tokens of a sample."""
        sizes = [denoiser.longest(self.length, self.s_length) for denoiser in self.denoisers]
        return max(encoder for encoder, _ in sizes), max(target for _, target in sizes)


class PrefixRecipe(Recipe):
    """Stage II: S-denoising with one fixed ratio (paper: 50 %)."""

    objective: Literal["prefix"]
    length: int
    ratio: float = 0.5

    @property
    def longest(self) -> tuple[int, int]:
        """Encoder and target tokens of a sample."""
        masked = max(1, round(self.length * self.ratio))
        return self.length - masked + 3, masked + 2


class InstructionRecipe(Recipe):
    """Stage III and the experts: input to target, `<S>` first in the encoder."""

    objective: Literal["instruction"]


Objective = Annotated[UL2Recipe | PrefixRecipe | InstructionRecipe, Field(discriminator="objective")]


class OptimRecipe(Recipe):
    """AdamW and its schedule."""

    lr: float
    min_lr: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Steps = 0
    decay: Steps | None = None
    """Steps until min_lr is reached; none: the whole budget."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0


class TrainRecipe(Recipe):
    """One training run. What it starts from and reads is the step's inputs, not told here."""

    data: Objective
    encoder_length: int
    """Longest encoder input in tokens (paper Table 2)."""
    decoder_length: int
    batch: int
    """Samples per optimiser step, over all workers (paper Table 2)."""
    budget: Budget
    """Tokens are counted as the paper's Table 2 seems to: batch * (encoder_length + decoder_length)."""
    optim: OptimRecipe
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    skip_loss_above: float = 10_000.0
    """A step whose loss is larger, or not finite, is skipped (paper section 5.4)."""
    heldout_batches: int = 4
    """Batches of held-out data measured before, during and after training."""
    evaluate_every: Steps
    seed: int = 1234

    @model_validator(mode="after")
    def _fits(self) -> TrainRecipe:
        if self.budget.amount < 1:
            raise ValueError("budget: nothing would be trained; give 1 step or more")
        if not isinstance(self.data, InstructionRecipe):
            encoder, target = self.data.longest
            if encoder > self.encoder_length or target > self.decoder_length:
                raise ValueError(
                    f"data.length {self.data.length} makes samples of {encoder} encoder and {target} target "
                    f"tokens; encoder_length {self.encoder_length} and decoder_length {self.decoder_length} "
                    "must hold them"
                )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Padded encoder and decoder tokens of one step."""
        return self.batch * (self.encoder_length + self.decoder_length)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole budget."""
        if self.budget.unit == "steps":
            return self.budget.amount
        return -(-self.budget.amount // self.tokens_per_step)


class TrainStep(Recipe):
    """A training run together with the model it trains."""

    model: ModelRecipe
    train: TrainRecipe

    @model_validator(mode="after")
    def _fits(self) -> TrainStep:
        longest = max(self.train.encoder_length, self.train.decoder_length)
        if longest > self.model.positions:
            raise ValueError(
                f"model.positions {self.model.positions} are fewer than the {longest} tokens of a side"
            )
        return self
