"""Rehearsal before the first step of what could fail late: the largest batch, a save, a reload.

Owns the rehearsal. The held-out measurement before the first step, which the stage makes anyhow, follows at
once and completes it. Afterwards the training state is bitwise what it was, and the checkpoint of step 0 that
proves it stays, for a roll-back that finds no later one.
"""

from __future__ import annotations

import time

import torch

from openba.errors import UserError
from openba.json_types import JsonObject
from openba.recipes.train import TrainRecipe
from openba.train.batches import Batch
from openba.train.checkpoint import Checkpoints, everywhere, reader
from openba.train.engine import Engine

_ANY = 1
"""The id that fills the batch; what it means is of no importance."""


def rehearse(engine: Engine, checkpoints: Checkpoints, recipe: TrainRecipe, record: JsonObject) -> float:
    """Save, train one step on the largest batch, reload; returns the seconds. All workers call it.

    Args:
        engine: This worker's.
        checkpoints: The run's.
        recipe: The run's.
        record: What its checkpoints say beside the engine's state.

    Raises:
        UserError: the checkpoint was not written, or does not read as it was written.
        MemoryError, torch.OutOfMemoryError: the largest batch does not fit.
    """
    begin = time.perf_counter()
    checkpoints.save(engine, 0, record)
    # Settled first: a save that fails is reported before anything else is computed.
    if not checkpoints.settle(engine):
        raise UserError(
            f"{checkpoints.folder}: the first checkpoint could not be written ({checkpoints.reason}); "
            "free some space or make the folder writable"
        )
    # The largest batch in every micro-batch of a step: what the step's memory peaks at.
    batch = largest(recipe, min(engine.micro_batch, recipe.batch))
    targets = batch.targets * engine.data_world * engine.accumulation
    engine.begin(engine.accumulation, torch.tensor(targets, device=engine.device))
    for _ in range(engine.accumulation):
        engine.backward(engine.forward(batch))
        engine.step(recipe.optim.lr)
    saved_folder = checkpoints.newest(engine.rank, engine.world, everywhere(engine))
    if saved_folder is None:
        raise UserError(f"{checkpoints.folder}: the first checkpoint does not read as it was written")
    saved_record, read_tensor = reader(saved_folder)
    engine.restore(read_tensor, saved_record)
    return time.perf_counter() - begin


def largest(recipe: TrainRecipe, micro_batch: int) -> Batch:
    """Return a micro-batch that is full to its last position."""
    source, target = ((micro_batch, n) for n in (recipe.encoder_length, recipe.decoder_length))
    labels = torch.full(target, _ANY)
    return Batch(torch.full(source, _ANY), torch.ones(source, dtype=torch.bool), labels.clone(), labels)
