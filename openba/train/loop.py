"""The loop: a generator of optimiser steps that knows nothing of logging, saving, Ray or MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from openba.recipes.train import TrainRecipe
from openba.train.batches import Batch, TrainingBatches
from openba.train.engine import Engine
from openba.train.guard import Guard, Verdict
from openba.train.schedule import learning_rate


@dataclass(frozen=True)
class StepInfo:
    """What one optimiser step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean cross entropy per target token over all workers, in nats."""
    lr: float
    gradient_norm: float | None
    tokens: int
    """Real (not padding) encoder and target tokens over all workers."""
    targets: int
    skipped: bool
    """The loss was not finite or above the limit, and the step left the weights as they were."""


@dataclass(frozen=True)
class Step:
    """A step's figures and what they were made of, on this worker."""

    info: StepInfo
    micro: list[Batch]
    verdict: Verdict
    data_seconds: float
    """Time until its batches were there."""
    flops: float
    """The model's FLOPs on all workers, real tokens only."""
    hardware_flops: float
    """With what is computed again."""
    signals: list[float]
    """Sum of `signals` over all workers."""
    modes: dict[str, float]
    """Mean loss of each denoiser's samples, of those that the step had."""


def training_steps(
    engine: Engine,
    batches: TrainingBatches,
    recipe: TrainRecipe,
    micro_batch: int,
    start: int,
    guard: Guard,
    cost: Callable[[list[Batch]], tuple[float, float]],
    signals: Callable[[], list[float]],
    modes: Mapping[str, int],
) -> Iterator[Step]:
    """Yield one Step per optimiser step, from `start` to the recipe's budget.

    Args:
        engine: this worker's.
        batches: the run's.
        recipe: the run's.
        micro_batch: a forward pass has at most the tokens of so many samples of the greatest length.
        start: steps that are done.
        guard: decides which steps are taken.
        cost: FLOPs of a worker's batches, the model's and the hardware's; asked before they first meet.
        signals: what a worker has to tell the others; asked as late in a step as possible.
        modes: first encoder id of each denoiser's samples; their losses are told apart.
    """
    for step in range(start, recipe.steps):
        # Dropout, as the data, follows from seed and step: a resumed run goes on as it would have.
        torch.manual_seed((recipe.seed * 1_000_003 + step) * engine.data_world + engine.data_rank)
        begin, data = time.perf_counter(), step + guard.shift
        micro = list(batches.micro(data, engine.data_rank, engine.data_world, micro_batch))
        waited = time.perf_counter() - begin
        counts = [sum(b.tokens for b in micro), sum(b.targets for b in micro)]
        tokens, targets, flops, hardware = engine.sum([*counts, *cost(micro)])
        lr = learning_rate(recipe.optim, step, recipe.steps)
        verdict, applied = _one_step(engine, micro, int(targets), lr, guard, list(modes.values()), signals)
        reason = guard.taken(step + 1, verdict, applied, partial(batches.items, data))
        info = StepInfo(
            step=step + 1,
            loss=verdict.mean,
            lr=lr,
            gradient_norm=engine.gradient_norm(),
            tokens=int(tokens),
            targets=int(targets),
            skipped=bool(reason),
        )
        by_mode = _by_mode(modes, verdict.parts)
        signalled = verdict.parts[2 * len(modes) :]
        yield Step(info, micro, verdict, waited, flops, hardware, signalled, by_mode)


def _one_step(
    engine: Engine,
    micro: list[Batch],
    targets: int,
    lr: float,
    guard: Guard,
    modes: list[int],
    signals: Callable[[], list[float]],
) -> tuple[Verdict, bool]:
    """Gradients of all micro-batches; before the last of them all workers agree whether to take the step."""
    engine.begin(len(micro))
    own, applied, verdict = 0.0, False, Verdict([], 0.0, "", [])
    parts = torch.zeros(len(modes), 2, dtype=torch.float64)
    for left, batch in zip(range(len(micro) - 1, -1, -1), micro, strict=True):
        loss = engine.forward(batch)
        own += float(loss.detach())
        if modes:
            scores = engine.scores(batch)[:, [0, 2]]
            parts += torch.stack([scores[batch.encoder_ids[:, 0] == mode].sum(0) for mode in modes])
        if left == 0:
            verdict = guard.judge(engine, own, targets, [*parts.flatten().tolist(), *signals()])
        engine.backward(loss, max(1, targets), usable=not verdict.reason)
        applied = engine.step(lr)
    return verdict, applied


def _by_mode(modes: Mapping[str, int], parts: list[float]) -> dict[str, float]:
    pairs = zip(modes, parts[::2], parts[1::2], strict=False)  # signals follow
    return {name: loss / count for name, loss, count in pairs if count}
