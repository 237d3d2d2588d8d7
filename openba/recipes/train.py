"""Recipes of training: objective, optimiser, budget. One form for all stages and experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openba.artifacts import Recipe
from openba.recipes.adapter import AdapterRecipe
from openba.recipes.model import ModelRecipe
from openba.recipes.numbers import (
    Count,
    Decay,
    InnerShare,
    LearningRate,
    NonNegative,
    NonNegativeSteps,
    Positive,
    PositiveSteps,
    SampleLength,
    Seed,
    Size,
)
from openba.units import Budget

SENTINELS = 100
"""`<extra_id_0>` to `<extra_id_99>`."""
SHORTEST_WINDOW = 2
"""Tokens of a window: one that the encoder sees and one that the decoder writes."""


class DenoiserRecipe(Recipe):
    """One row of the paper's Table 3."""

    mode: Literal["R", "S", "X"]
    mean_span: Size | None = None
    """Mean tokens of a masked span; none for S, which masks the end."""
    ratio: InnerShare
    """Share of tokens masked."""

    @model_validator(mode="after")
    def _spans(self) -> DenoiserRecipe:
        if (self.mode == "S") != (self.mean_span is None):
            raise ValueError("R and X need mean_span, S has none")
        return self

    def masked(self, length: int) -> int:
        """Masked tokens of a sample: the ratio, rounded half to even as the release does, and never all."""
        # Never none, as there would be nothing to learn, nor all, as the encoder would see nothing.
        return min(max(1, round(length * self.ratio)), length - 1)

    def wanted_spans(self, length: int) -> int:
        """Masked spans of a sample by the mean span, were there sentinels without end."""
        masked = self.masked(length)
        span_count = 1 if self.mean_span is None else max(1, round(masked / self.mean_span))
        # Each span has a masked token of its own and kept text before it.
        return min(span_count, masked, length - masked)

    def spans(self, length: int) -> int:
        """Masked spans of a sample; each has one of the 100 sentinels and kept text before it."""
        return min(self.wanted_spans(length), SENTINELS)

    def clipped(self, length: int) -> str | None:
        """One line if the sentinels do not suffice, so that spans are longer than the mean span says."""
        wanted_count = self.wanted_spans(length)
        spans = self.spans(length)
        if wanted_count == spans:
            return None
        return (
            f"{self.mode}({self.mean_span}, {self.ratio:g}) needs {wanted_count} spans of {length:,} tokens "
            f"and has {spans} sentinels: its mean span is {self.masked(length) / spans:.1f} tokens"
        )


@dataclass(frozen=True)
class Corruption:
    """Rule by which one kind of sample is made of a window of tokens."""

    mode: Literal["R", "S", "X"]
    """First token of the encoder's input."""
    masked: int
    """Tokens that the decoder writes."""
    spans: int = 1
    """Runs of tokens that they form; one stands at the window's end."""
    draws_fewer: bool = False
    """Whether the number of masked tokens is drawn anew for each sample, uniformly from 1 to `masked`."""
    is_closed: bool = True
    """Whether </s> ends the labels."""
    ends_anywhere: bool = False
    """Whether kept text may follow the last masked span."""

    def sizes(self, length: int) -> list[tuple[int, int]]:
        """Return encoder and target tokens of its samples, each of these as likely as the others."""
        masked_counts = range(1, self.masked + 1) if self.draws_fewer else [self.masked]
        return [
            (length - masked + self.spans + 2, masked + self.spans + int(self.is_closed))
            for masked in masked_counts
        ]


class WindowsRecipe(Recipe):
    """Base of objectives that corrupt windows of text. A new one says how, and joins `Objective` below."""

    length: SampleLength
    windows: Annotated[
        Literal["crossed", "bounded"], Field(exclude_if=lambda windows: windows == "crossed")
    ] = "crossed"
    """`crossed`: windows of `length` tokens, whatever documents begin and end in them (paper, release).
    `bounded`: a window has text of one document, of at most `length` tokens. A recipe without keeps its
    fingerprint."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        # Evenly divided windows of three tokens never have fewer than two; of two they may have one.
        if self.windows == "bounded" and self.length <= SHORTEST_WINDOW:
            raise ValueError(
                f"length: {self.length} with bounded windows; the least is {SHORTEST_WINDOW + 1}"
            )
        return self

    def at_length(self, length: int) -> Self:
        """Return the recipe for windows of another length."""
        return self.model_copy(update={"length": length})

    def corruptions(self) -> tuple[Corruption, ...]:
        """Return the kinds of samples; each sample is of one of them, drawn uniformly."""
        raise NotImplementedError

    def by_mode(self) -> dict[str, Self]:
        """Return the recipes that are measured apart, by name; a recipe that is not divided is `loss`."""
        return {"loss": self}

    @property
    def clipped(self) -> list[str]:
        """A line for each kind whose spans the sentinels do not suffice for."""
        return []

    @property
    def longest(self) -> tuple[int, int]:
        """Largest numbers of encoder and target tokens of a sample."""
        sizes = [size for corruption in self.corruptions() for size in corruption.sizes(self.length)]
        return max(encoder for encoder, _ in sizes), max(target for _, target in sizes)


class UL2Recipe(WindowsRecipe):
    """Stage I: a mixture of denoisers, one per sample (paper section 3.3, Table 3)."""

    objective: Literal["ul2"]
    length: SampleLength
    """Tokens of one sample before corruption. 568 gives the release's 570 encoder tokens."""
    denoisers: tuple[DenoiserRecipe, ...] = Field(min_length=1)
    """Drawn uniformly per sample, as the release does (1/7 each)."""
    s_length: Literal["fixed", "uniform"] = "fixed"
    """Masked tail of S: `fixed` at its ratio (paper), or uniform in 1..ratio (release)."""
    spans: Literal["to_end", "anywhere"] = "to_end"
    """Where R and X mask. `to_end`: kept and masked spans alternate and the last is masked (release), so the
    last token always is, and a denoiser of one span masks the end only. `anywhere`: kept text may follow."""

    def corruptions(self) -> tuple[Corruption, ...]:
        """See `WindowsRecipe`."""
        return tuple(
            Corruption(
                mode=denoiser.mode,
                masked=denoiser.masked(self.length),
                spans=denoiser.spans(self.length),
                draws_fewer=denoiser.mode == "S" and self.s_length == "uniform",
                ends_anywhere=denoiser.mode != "S" and self.spans == "anywhere",
            )
            for denoiser in self.denoisers
        )

    def by_mode(self) -> dict[str, Self]:
        """R, S and X apart."""
        modes = dict.fromkeys(denoiser.mode for denoiser in self.denoisers)
        return {mode: self._only(mode) for mode in modes}

    def _only(self, mode: str) -> Self:
        denoisers = tuple(denoiser for denoiser in self.denoisers if denoiser.mode == mode)
        return self.model_copy(update={"denoisers": denoisers})

    @property
    def clipped(self) -> list[str]:
        """A line for each denoiser whose spans the sentinels do not suffice for."""
        return [line for denoiser in self.denoisers if (line := denoiser.clipped(self.length))]


class PrefixRecipe(WindowsRecipe):
    """Stage II: S-denoising with one fixed ratio (paper: 50 %)."""

    objective: Literal["prefix"]
    length: SampleLength
    ratio: InnerShare = 0.5
    closed: bool = True
    """</s> after the target. The release's 1025 labels for 1024 tokens leave no place for it."""

    @property
    def masked(self) -> int:
        """Tokens the decoder writes; the encoder sees at least one."""
        return min(max(1, round(self.length * self.ratio)), self.length - 1)

    def corruptions(self) -> tuple[Corruption, ...]:
        """See `WindowsRecipe`."""
        return (Corruption("S", self.masked, is_closed=self.closed),)


class PrefixLMRecipe(WindowsRecipe):
    """Continuation of a prefix of any length: UL2's S alone, cut at a uniformly drawn position."""

    objective: Literal["prefix_lm"]
    ratio: InnerShare = 0.9
    """Largest share of the window that the decoder writes; the smallest is one token."""

    def corruptions(self) -> tuple[Corruption, ...]:
        """See `WindowsRecipe`."""
        most_masked = DenoiserRecipe(mode="S", ratio=self.ratio).masked(self.length)
        return (Corruption("S", most_masked, draws_fewer=True),)


class SpanCorruptionRecipe(WindowsRecipe):
    """T5's objective: short spans, one denoiser for all samples (arXiv 1910.10683, section 3.1.4)."""

    objective: Literal["span_corruption"]
    ratio: InnerShare = 0.15
    mean_span: Size = 3

    def corruptions(self) -> tuple[Corruption, ...]:
        """See `WindowsRecipe`."""
        denoiser = self._denoiser()
        masked = denoiser.masked(self.length)
        spans = denoiser.spans(self.length)
        return (Corruption("R", masked, spans, ends_anywhere=True),)

    @property
    def clipped(self) -> list[str]:
        """A line if the sentinels do not suffice for the spans."""
        line = self._denoiser().clipped(self.length)
        return [line] if line else []

    def _denoiser(self) -> DenoiserRecipe:
        return DenoiserRecipe(mode="R", mean_span=self.mean_span, ratio=self.ratio)


class InstructionRecipe(Recipe):
    """Stage III and the experts: input to target, `<S>` first in the encoder."""

    objective: Literal["instruction"]


Objective = Annotated[
    UL2Recipe | PrefixRecipe | PrefixLMRecipe | SpanCorruptionRecipe | InstructionRecipe,
    Field(discriminator="objective"),
]


ScheduleName = Literal["cosine", "constant", "inverse_sqrt", "linear", "wsd"]


class MuonRecipe(Recipe):
    """Muon for the blocks' matrices; embedding, head and vectors keep AdamW."""

    lr: LearningRate = 0.02
    """Rate of the matrices where the schedule is at its highest; their weight decay is AdamW's."""
    momentum: Decay = 0.95


class OptimRecipe(Recipe):
    """AdamW, or Muon beside it, and the schedule."""

    lr: LearningRate
    min_lr: LearningRate = 0.0
    schedule: ScheduleName = "cosine"
    warmup: NonNegativeSteps = 0
    decay: PositiveSteps | None = None
    """Cosine and linear: steps until min_lr is reached; none: the whole budget. wsd: steps of the last part,
    which falls; none: a tenth of the budget."""
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    clip: NonNegative = 1.0
    """Largest norm of the gradient; 0: it is not clipped."""
    muon: Annotated[MuonRecipe | None, Field(exclude_if=lambda recipe: recipe is None)] = None
    """Train matrices by Muon. A recipe without keeps its fingerprint."""

    @model_validator(mode="after")
    def _falls(self) -> OptimRecipe:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}, at which the schedule begins")
        if self.muon is not None and self.lr == 0:
            raise ValueError("lr is 0: with muon it is AdamW's rate, of which Muon's is a multiple; raise it")
        return self


_MOST_STEPS = 10**11
"""Steps times samples of the largest batch still fit into 64 bits."""


class TrainRecipe(Recipe):
    """One training run. What it starts from and reads is given by the step's inputs."""

    data: Objective
    encoder_length: Size
    """Longest encoder input in tokens (paper Table 2)."""
    decoder_length: Size
    batch: Count
    """Samples per optimiser step, over all workers (paper Table 2)."""
    budget: Budget
    """Tokens are counted as the paper's Table 2 seems to: batch * (encoder_length + decoder_length)."""
    optim: OptimRecipe
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    adapter: Annotated[AdapterRecipe | None, Field(exclude_if=lambda recipe: recipe is None)] = None
    """Train an adapter beside frozen weights, not the weights; needs a start. A recipe without keeps its
    fingerprint."""
    skip_loss_above: Positive = 10_000.0
    """A step whose loss is larger, or not finite, is skipped (paper section 5.4)."""
    skip_loss_sigma: Positive | None = None
    """Skip, too, a step whose loss is so many standard deviations above the mean of the last 128."""
    heldout_batches: Count = 4
    """Batches of held-out data measured before, during and after training."""
    evaluate_every: PositiveSteps
    keep_every: PositiveSteps | None = None
    """Keep the weights after every so many steps as well, to be evaluated like a stage's own (Figure 6)."""
    seed: Seed = 1234

    @model_validator(mode="after")
    def _fits(self) -> TrainRecipe:
        if self.steps > _MOST_STEPS:
            raise ValueError(
                f"budget: {self.budget} are {self.steps:.3g} steps; the most is {_MOST_STEPS:.0e}"
            )
        if self.optim.warmup > self.steps:
            raise ValueError(
                f"optim.warmup: {self.optim.warmup} steps are more than the {self.steps} of the budget; "
                "the full rate would never be reached"
            )
        if isinstance(self.data, WindowsRecipe):
            encoder, target = self.data.longest
            if encoder > self.encoder_length or target > self.decoder_length:
                raise ValueError(
                    f"data.length {self.data.length} makes samples of {encoder} encoder and {target} target "
                    f"tokens; encoder_length {self.encoder_length} and decoder_length {self.decoder_length} "
                    "must hold them"
                )
        return self

    @property
    def reads_pairs(self) -> bool:
        """Whether its samples are pairs of input and target, rather than windows of a mixture."""
        return isinstance(self.data, InstructionRecipe)

    @property
    def tokens_per_step(self) -> int:
        """Padded encoder and decoder tokens of one step."""
        return self.batch * (self.encoder_length + self.decoder_length)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole budget."""
        # A budget of tokens is rounded up: no training falls short of it.
        if self.budget.unit == "steps":
            return self.budget.amount
        return -(-self.budget.amount // self.tokens_per_step)

    @property
    def kept(self) -> list[int]:
        """Steps whose weights are kept, the last one's aside."""
        return list(range(self.keep_every, self.steps, self.keep_every)) if self.keep_every else []


class TrainStep(Recipe):
    """A training run together with the model it trains and the data it reads."""

    model: ModelRecipe
    train: TrainRecipe
    part: str | None = None
    """Part of the mixture that the `data` input is; none: that input is a mix of task pairs."""
    start_step: PositiveSteps | None = None
    """Begin from the weights that the `start` input kept after this step; none: those of its end."""
