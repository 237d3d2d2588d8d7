"""Checks of a training recipe against a runtime; plan and run call the same functions.

Owns checks that need both sides. What one of them may say alone is in its own type.
"""

from __future__ import annotations

from openba.errors import UserError
from openba.recipes.runtime import PipelineRuntime, TrainRuntime
from openba.recipes.train import TrainRecipe


def check_training(recipe: TrainRecipe, runtime: PipelineRuntime) -> None:
    """Refuse a runtime that cannot run this training.

    Raises:
        UserError: more workers than devices, an adapter with tensor parallelism, Muon where it cannot work,
            or workers that cannot share the weights or the batch evenly.
    """
    if runtime.train.workers > runtime.devices:
        raise UserError(
            f"runtime.train.workers: {runtime.train.workers} workers need a device each, but runtime.devices "
            f"is {runtime.devices}; lower the workers or raise the devices"
        )
    if recipe.adapter is not None and runtime.tensor_parallel > 1:
        raise UserError(
            f"runtime.tensor_parallel: {runtime.tensor_parallel} workers share each weight, and an adapter "
            "needs whole ones; set it to 1, and train.zero_stage to 3 if the weights do not fit"
        )
    if recipe.optim.muon is not None:
        _check_muon(recipe, runtime)
    accumulation_steps(recipe, runtime.train, data_parallel_workers(runtime))


def _check_muon(recipe: TrainRecipe, runtime: PipelineRuntime) -> None:
    """Refuse what DeepSpeed's Muon cannot do, or does otherwise.

    In fp32, and at ZeRO 2, DeepSpeed 0.19.8 clips the orthogonalised update in place of the gradient.
    """
    remedies = {
        "train.precision: Muon is for bf16; set it to bf16": recipe.precision != "bf16",
        "runtime.train.zero_stage: Muon is for ZeRO 1; set it to 1": runtime.train.zero_stage != 1,
        "runtime.tensor_parallel: Muon needs whole matrices; set it to 1": runtime.tensor_parallel > 1,
        "train.adapter: Muon is for whole weights; leave one of the two out": recipe.adapter is not None,
    }
    for remedy, is_wrong in remedies.items():
        if is_wrong:
            raise UserError(f"{remedy}, or train without optim.muon")


def data_parallel_workers(runtime: PipelineRuntime) -> int:
    """Return how many groups of workers see different data.

    Raises:
        UserError: the workers cannot be divided into tensor-parallel groups.
    """
    workers = runtime.train.workers
    tensor_parallel = runtime.tensor_parallel
    if workers % tensor_parallel:
        raise UserError(
            f"runtime.train.workers: {workers} is not a multiple of runtime.tensor_parallel "
            f"{tensor_parallel}; change one of them"
        )
    return workers // tensor_parallel


def accumulation_steps(recipe: TrainRecipe, runtime: TrainRuntime, world: int) -> int:
    """Micro-batches per worker and optimiser step, `world` data-parallel workers sharing a batch.

    Raises:
        UserError: the workers cannot share a batch evenly; one would wait for the others for ever.
    """
    # Else one worker would have a sample more, and the others would wait for it in every collective.
    if recipe.batch % world:
        raise UserError(
            f"runtime.train.workers: {world} data-parallel workers cannot share a batch of {recipe.batch}; "
            "take a divisor"
        )
    return -(-recipe.batch // (runtime.micro_batch * world))
