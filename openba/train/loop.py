"""Optimiser steps of a training, as a generator.

Owns the order of one step: batches, forward and backward passes, the verdict that all workers reach together,
the optimiser. Logging, measuring and saving are hooks' (`hooks.py`); it writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from openba.model.loss import IGNORE
from openba.train.batches import Batch, TrainingBatches
from openba.train.engine import Engine
from openba.train.guard import Guard, Verdict
from openba.train.hooks import Hook
from openba.train.loader import load_ahead
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
    first_data_step, last_data_step = (step + guard.shift for step in (start_step, recipe.steps))
    loader = load_ahead(batches, engine, first_data_step, last_data_step)
    try:
        for step in range(start_step, recipe.steps):
            # Dropout, as the data, follows from seed and step: a resumed run goes on as it would have.
            torch.manual_seed((recipe.seed * 1_000_003 + step) * engine.data_world + engine.data_rank)
            began = time.perf_counter()
            micro_batches = loader.take()
            data_seconds = time.perf_counter() - began
            # From here on a worker that stands still stands in a step, not in its data.
            for hook in hooks:
                hook.on_phase("step")
            lr = learning_rate(recipe.optim, step, recipe.steps)
            exchange = _Exchange(engine, guard, hooks, batches.modes, micro_batches)
            verdict, is_applied = _run_step(engine, micro_batches, lr, exchange)
            yield FinishedStep(
                # Loss and norm are of the step's start: the weights have moved since, unless it was skipped.
                figures=StepFigures(
                    step=step + 1,
                    loss=verdict.mean,
                    lr=lr,
                    gradient_norm=engine.gradient_norm(),
                    tokens=int(exchange.counts["tokens"]),
                    targets=int(exchange.counts["targets"]),
                    skipped=bool(verdict.reason or not is_applied),
                ),
                micro_batches=micro_batches,
                verdict=verdict,
                outcome=guard.note(verdict, is_applied),
                data_step=step + guard.shift,
                data_seconds=data_seconds,
                counts=exchange.counts,
                flags=exchange.flags,
                mode_losses=exchange.mode_losses,
            )
    finally:
        loader.close()


class _Exchange:
    """Numbers of one step that the workers add up.

    Counts are added up before the first forward pass and stay on the device, where the loss needs them;
    losses and flags before the last backward pass. The host reads all of them then, in one go.
    """

    def __init__(
        self,
        engine: Engine,
        guard: Guard,
        hooks: Iterable[Hook],
        modes: Mapping[str, int],
        micro_batches: list[Batch],
    ) -> None:
        self.engine = engine
        self.guard = guard
        self.hooks = hooks
        self.modes = modes
        own_counts: dict[str, float] = {
            "tokens": sum(batch.tokens for batch in micro_batches),
            "targets": sum(batch.targets for batch in micro_batches),
        }
        for hook in hooks:
            own_counts |= hook.counts(micro_batches)
        self._count_names = list(own_counts)
        self._counts = engine.sum_on_device(torch.tensor(list(own_counts.values()), dtype=torch.float64))
        self.counts: dict[str, float] = {}
        """Counts over all workers; empty until `judge`."""
        self.flags: dict[str, bool] = {}
        self.mode_losses: dict[str, float] = {}
        self._loss = torch.zeros((), dtype=torch.float64, device=engine.device)
        self._mode_losses = torch.zeros(len(modes) + 1, dtype=torch.float64, device=engine.device)
        self._mode_tokens = torch.zeros(len(modes) + 1, dtype=torch.float64)

    @property
    def targets(self) -> Tensor:
        """Target tokens of the step over all workers, a scalar on the device."""
        return self._counts[self._count_names.index("targets")]

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Add the loss of the batch that was computed last, and its samples' to their denoisers'."""
        self._loss += loss.detach()
        if not self.modes:
            return
        # A sample's first encoder token is its denoiser's mode; the last place is for all that have none.
        mode_ids = torch.tensor(list(self.modes.values()))
        is_mode = batch.encoder_ids[:, :1] == mode_ids
        row_modes = torch.where(is_mode.any(1), is_mode.int().argmax(1), len(self.modes))
        self._mode_tokens.index_add_(0, row_modes, (batch.labels != IGNORE).sum(1).double())
        row_losses = self.engine.row_scores(len(row_modes))[:, 0]
        self._mode_losses.index_add_(0, row_modes.to(self.engine.device, non_blocking=True), row_losses)

    def judge(self) -> Verdict:
        """Return the verdict on the step; read all numbers that the workers have added up."""
        own_flags: dict[str, bool] = {}
        for hook in self.hooks:
            own_flags |= hook.flags()
        engine = self.engine
        # One slot a worker, so that the sum shows each of them whose loss is broken.
        worker_losses = torch.zeros(engine.world, dtype=torch.float64, device=engine.device)
        worker_losses[engine.rank] = self._loss
        known_here = torch.tensor([*self._mode_tokens, *map(float, own_flags.values())], dtype=torch.float64)
        own_numbers = torch.cat([worker_losses, self._mode_losses, known_here.to(engine.device)])
        summed = torch.cat([self._counts, engine.sum_on_device(own_numbers)]).tolist()  # the step's one read
        sizes = (
            len(self._count_names),
            engine.world,
            len(self.modes) + 1,
            len(self.modes) + 1,
            len(own_flags),
        )
        counts, losses, mode_losses, mode_tokens, flags = _divided(summed, sizes)
        self.counts = dict(zip(self._count_names, counts, strict=True))
        self.flags = {name: bool(total) for name, total in zip(own_flags, flags, strict=True)}
        by_mode = zip(self.modes, mode_losses, mode_tokens, strict=False)
        self.mode_losses = {name: loss / tokens for name, loss, tokens in by_mode if tokens}
        return self.guard.judge(losses, int(self.counts["targets"]))


def _divided(numbers: list[float], sizes: Iterable[int]) -> list[list[float]]:
    """Cut a list into consecutive parts of these sizes."""
    remaining = iter(numbers)
    return [list(islice(remaining, size)) for size in sizes]


def _run_step(
    engine: Engine, micro_batches: list[Batch], lr: float, exchange: _Exchange
) -> tuple[Verdict, bool]:
    """Compute gradients of all micro-batches; before the last, all workers agree whether to take the step."""
    engine.begin(len(micro_batches), exchange.targets)
    is_applied = False
    verdict = Verdict([], 0.0, "")
    for number, batch in enumerate(micro_batches, 1):
        loss = engine.forward(batch)
        exchange.add(batch, loss)
        # Before the last backward pass: poisoned gradients are how DeepSpeed drops a step on all workers.
        if number == len(micro_batches):
            verdict = exchange.judge()
        engine.backward(loss, is_usable=not verdict.reason)
        is_applied = engine.step(lr)
    return verdict, is_applied
