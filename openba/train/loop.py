"""Optimiser steps of a training, as a generator.

Owns the order of one step: batches, forward and backward passes, the verdict that all workers reach together,
the optimiser. Logging, measuring and saving are hooks' (`hooks.py`); it writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from openba.train.batches import Batch, TrainingBatches
from openba.train.engine import Engine
from openba.train.guard import Guard, Verdict
from openba.train.hooks import Hook
from openba.train.schedules import learning_rate
from openba.train.steps import FinishedStep, StepFigures


def training_steps(
    *, engine: Engine, batches: TrainingBatches, guard: Guard, hooks: Sequence[Hook], start_step: int
) -> Iterator[FinishedStep]:
    """Yield each optimiser step from `start_step` to the end of the recipe's budget.

    Args:
        engine: This worker's.
        batches: The run's; they know its recipe.
        guard: Decides which steps are taken.
        hooks: Asked for counts when a step's batches are there, for flags as late in it as possible.
        start_step: Steps that are done.
    """
    recipe = batches.recipe
    for step in range(start_step, recipe.steps):
        # Dropout, as the data, follows from seed and step: a resumed run goes on as it would have.
        torch.manual_seed((recipe.seed * 1_000_003 + step) * engine.data_world + engine.data_rank)
        data_step = step + guard.shift
        began = time.perf_counter()
        micro_batches = list(
            batches.micro(data_step, engine.data_rank, engine.data_world, engine.micro_batch)
        )
        data_seconds = time.perf_counter() - began
        # From here on a worker that stands still stands in a step, not in its data.
        for hook in hooks:
            hook.on_phase("step")
        counts = _sum_counts(engine, micro_batches, hooks)
        lr = learning_rate(recipe.optim, step, recipe.steps)
        exchange = _Exchange(engine, guard, hooks, batches.modes, int(counts["targets"]))
        verdict, is_applied = _run_step(engine, micro_batches, lr, exchange)
        # Loss and norm are of the step's start: the weights have moved since, unless it was skipped.
        figures = StepFigures(
            step=step + 1,
            loss=verdict.mean,
            lr=lr,
            gradient_norm=engine.gradient_norm(),
            tokens=int(counts["tokens"]),
            targets=int(counts["targets"]),
            skipped=bool(verdict.reason or not is_applied),
        )
        yield FinishedStep(
            figures=figures,
            micro_batches=micro_batches,
            verdict=verdict,
            outcome=guard.note(verdict, is_applied),
            data_step=data_step,
            data_seconds=data_seconds,
            counts=counts,
            flags=exchange.flags,
            mode_losses=exchange.mode_losses,
        )


class _Exchange:
    """Numbers of one step that the workers all-reduce, at once, before its last backward pass."""

    def __init__(
        self,
        engine: Engine,
        guard: Guard,
        hooks: Iterable[Hook],
        modes: Mapping[str, int],
        targets: int,
    ) -> None:
        self.engine = engine
        self.guard = guard
        self.hooks = hooks
        self.modes = modes
        self.targets = targets
        """Target tokens of the step over all workers."""
        self.flags: dict[str, bool] = {}
        self.mode_losses: dict[str, float] = {}
        self._mode_sums = torch.zeros(len(modes), 2, dtype=torch.float64)

    def add(self, batch: Batch) -> None:
        """Add the losses of the batch that was computed last to its denoisers'."""
        if not self.modes:
            return
        # A sample's first encoder token is its denoiser's mode.
        loss_and_tokens = self.engine.scores(batch)[:, [0, 2]]
        first_ids = batch.encoder_ids[:, 0]
        self._mode_sums += torch.stack(
            [loss_and_tokens[first_ids == mode_id].sum(0) for mode_id in self.modes.values()]
        )

    def judge(self, worker_loss: float) -> Verdict:
        """Return the verdict on the step, with flags and losses by denoiser read from the same all-reduce."""
        # Losses, denoisers' losses and flags in one all-reduce, the second and last of a step's figures.
        own_flags: dict[str, bool] = {}
        for hook in self.hooks:
            own_flags |= hook.flags()
        numbers = [*self._mode_sums.flatten().tolist(), *map(float, own_flags.values())]
        verdict, sums = self.guard.judge(self.engine, worker_loss, self.targets, numbers)
        mode_sums = sums[: 2 * len(self.modes)]
        flag_sums = sums[2 * len(self.modes) :]
        self.flags = {name: bool(total) for name, total in zip(own_flags, flag_sums, strict=True)}
        by_mode = zip(self.modes, mode_sums[::2], mode_sums[1::2], strict=True)
        self.mode_losses = {name: loss / count for name, loss, count in by_mode if count}
        return verdict


def _sum_counts(engine: Engine, micro_batches: list[Batch], hooks: Sequence[Hook]) -> dict[str, float]:
    counts: dict[str, float] = {
        "tokens": sum(batch.tokens for batch in micro_batches),
        "targets": sum(batch.targets for batch in micro_batches),
    }
    for hook in hooks:
        counts |= hook.counts(micro_batches)
    return dict(zip(counts, engine.sum(list(counts.values())), strict=True))


def _run_step(
    engine: Engine, micro_batches: list[Batch], lr: float, exchange: _Exchange
) -> tuple[Verdict, bool]:
    """Compute gradients of all micro-batches; before the last, all workers agree whether to take the step."""
    engine.begin(len(micro_batches), exchange.targets)
    worker_loss = 0.0
    is_applied = False
    verdict = Verdict([], 0.0, "")
    for number, batch in enumerate(micro_batches, 1):
        loss = engine.forward(batch)
        worker_loss += float(loss.detach())
        exchange.add(batch)
        # Before the last backward pass: poisoned gradients are how DeepSpeed drops a step on all workers.
        if number == len(micro_batches):
            verdict = exchange.judge(worker_loss)
        engine.backward(loss, is_usable=not verdict.reason)
        is_applied = engine.step(lr)
    return verdict, is_applied
