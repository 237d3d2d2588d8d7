"""What could fail late is tried before the first step: the largest batch, a save, a reload.

Owns the rehearsal. The held-out measurement before the first step, which the stage makes anyhow, follows at
once and completes it. Afterwards the training state is bitwise what it was, and the checkpoint of step 0 that
proves it stays, for a roll-back that finds no later one.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from openba.errors import UserError
from openba.recipes.train import TrainRecipe
from openba.train.batches import Batch
from openba.train.checkpoint import Checkpoints, everywhere, reader
from openba.train.engine import Engine

_ANY = 1
"""The id that fills the batch; what it means is of no importance."""


def rehearse(
    engine: Engine, checkpoints: Checkpoints, recipe: TrainRecipe, micro_batch: int, extra: dict[str, Any]
) -> float:
    """Save, train one step on the largest batch, reload; returns the seconds. All workers call it.

    Raises:
        UserError: the checkpoint was not written, or does not read as it was written.
        MemoryError, torch.OutOfMemoryError: the largest batch does not fit.
    """
    begin = time.perf_counter()
    checkpoints.save(engine, 0, extra)
    # Settled first: a save that fails is told before anything else is paid for.
    if not checkpoints.settle(engine):
        raise UserError(
            f"{checkpoints.folder}: the first checkpoint could not be written ({checkpoints.reason}); "
            "free some space or make the folder writable"
        )
    batch = largest(recipe, min(micro_batch, recipe.batch))
    for _ in range(engine.accumulation):
        loss = engine.forward(batch)
        engine.backward(loss, batch.targets * engine.data_world * engine.accumulation)
        engine.step(recipe.optim.lr)
    found = checkpoints.newest(engine.rank, engine.world, everywhere(engine))
    if found is None:
        raise UserError(f"{checkpoints.folder}: the first checkpoint does not read as it was written")
    record, read = reader(found)
    engine.restore(read, record)
    return time.perf_counter() - begin


def largest(recipe: TrainRecipe, micro_batch: int) -> Batch:
    """A micro-batch that is full to its last place."""
    source, target = ((micro_batch, n) for n in (recipe.encoder_length, recipe.decoder_length))
    labels = torch.full(target, _ANY)
    return Batch(torch.full(source, _ANY), torch.ones(source, dtype=torch.bool), labels.clone(), labels)
