"""Plan of a training run, before any device is touched: `openba plan`.

Pure functions of recipe and runtime. Hours and energy follow from the runtime file: at the utilisation that
it states, or predicted from counts of the code and the device's data sheet (`roofline.py`). FLOPs, steps and
model state are exact.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TypedDict

from openba.accounting.adapters import adapter_note, adapter_state_bytes
from openba.accounting.energy import paper_energy
from openba.accounting.flops import parameters, run_flops, run_hardware_flops, useful_run_flops
from openba.accounting.memory import activation_bytes, checkpoint_bytes, loss_bytes, state_bytes
from openba.json_types import JsonObject
from openba.recipes.adapter import AdapterRecipe, adapter_parameters, target_shapes
from openba.recipes.architecture import Recompute
from openba.recipes.checks import check_training, data_parallel_workers
from openba.recipes.runtime import PipelineRuntime, TrainRuntime
from openba.recipes.train import TrainStep


class ZeroMemory(TypedDict):
    """Memory of one device at one ZeRO stage, in bytes."""

    zero_stage: int
    state: int
    activations: int
    logits: int
    """The loss: a slice of logits and the head's gradient."""
    total: int
    fits: bool
    chosen: bool


class TrainingPlan(TypedDict):
    """Needs of one training step."""

    parameters: int
    tokens: int
    """Padded, encoder and decoder."""
    steps: int
    flops: int
    """The model's, at padded lengths."""
    flops_hardware_padded: int
    """With what the backward pass computes again."""
    flops_useful: float | None
    """The model's on real tokens; None for pairs and bounded windows, whose lengths are the data's."""
    flops_hardware: float | None
    """The same with what is computed again."""
    prediction: JsonObject | None
    """`roofline.StepTime`, and what limits the step; None where the runtime states a utilisation."""
    workers: int
    gpu_hours: float
    wall_hours: float
    """With every worker on a device of its own; devices without a worker do not help."""
    kwh: float
    tco2eq: float
    money: float | None
    """At the runtime's price of a device hour; None where it states none."""
    memory: list[ZeroMemory]
    """ZeRO stages 0 to 3."""
    micro_batch: int
    tensor_parallel: int
    recompute: Recompute
    device_memory: int
    fits: bool
    """Whether the runtime's own ZeRO stage does."""
    checkpoint_bytes: int
    adapter_notes: list[str]
    """Lines about the adapter that is trained; none if all weights are."""


def plan_training(recipe: TrainStep, runtime: PipelineRuntime, vocab: int) -> TrainingPlan:
    """Tokens, FLOPs, hours, memory, energy and disk of one training run.

    Raises:
        UserError: the runtime cannot run it, see `check_training`.
    """
    train = recipe.train
    device = runtime.device
    # The same checks as at the start of a run: a plan of what cannot run is worth nothing.
    check_training(train, runtime)
    parameter_count = sum(parameters(recipe.model, vocab).values())
    padded_flops = run_flops(recipe, vocab)
    prediction = None
    if device.utilisation is not None:
        # Padded FLOPs at the runtime's utilisation, which is measured the same way: as the paper counts.
        gpu_hours = padded_flops / (device.peak_tflops * 1e12 * device.utilisation) / 3600
    else:
        from openba.accounting.roofline import predict  # loads torch, which no other plan needs

        step_time = predict(recipe, runtime, vocab)
        prediction = asdict(step_time) | {"limit": step_time.limit}
        gpu_hours = train.steps * step_time.seconds * runtime.train.workers / 3600
    carbon = paper_energy(gpu_hours, device.watts, runtime.pue, runtime.carbon_intensity)
    memory = _memory(recipe, runtime, vocab, parameter_count)
    recompute = runtime.train.recompute
    trained_count = parameter_count
    adapter_notes: list[str] = []
    if train.adapter is not None:
        trained_count = adapter_parameters(recipe.model, train.adapter)
        planned_bytes = memory[0]["total"]  # of stage 0: nothing is shared out
        adapter_notes = [adapter_note(recipe.model, train.adapter, vocab, planned_bytes, train.precision)]
    useful_flops = useful_run_flops(recipe, vocab, recompute)
    return {
        "parameters": parameter_count,
        "tokens": train.steps * train.tokens_per_step,
        "steps": train.steps,
        "flops": padded_flops,
        "flops_hardware_padded": run_hardware_flops(recipe, vocab, recompute),
        "flops_useful": useful_flops and useful_flops[0],
        "flops_hardware": useful_flops and useful_flops[1],
        "prediction": prediction,
        "workers": runtime.train.workers,
        "gpu_hours": gpu_hours,
        "wall_hours": gpu_hours / runtime.train.workers,
        "kwh": carbon.kwh,
        "tco2eq": carbon.tco2eq,
        "money": None if runtime.price is None else gpu_hours * runtime.price,
        "memory": memory,
        "micro_batch": runtime.train.micro_batch,
        "tensor_parallel": runtime.tensor_parallel,
        "recompute": runtime.train.recompute,
        "device_memory": device.memory,
        "fits": any(stage["fits"] for stage in memory if stage["chosen"]),
        "checkpoint_bytes": checkpoint_bytes(trained_count, _muon_count(recipe)),
        "adapter_notes": adapter_notes,
    }


def _held(train_runtime: TrainRuntime) -> Recompute:
    """Return what the blocks keep for backward, in the terms of `activation_bytes`."""
    if train_runtime.compile and train_runtime.recompute != "full":
        return "selective"
    return "attention" if train_runtime.recompute == "none" else train_runtime.recompute


def _muon_count(recipe: TrainStep) -> int:
    """Return the number of parameters that Muon trains: all matrices of the blocks."""
    if recipe.train.optim.muon is None:
        return 0
    every_layer = AdapterRecipe(kind="lora")
    return sum(inputs * outputs for inputs, outputs in target_shapes(recipe.model, every_layer))


def _memory(recipe: TrainStep, runtime: PipelineRuntime, vocab: int, count: int) -> list[ZeroMemory]:
    train = recipe.train
    train_runtime = runtime.train
    tensor_parallel = runtime.tensor_parallel
    activation_total = activation_bytes(
        recipe.model,
        train.encoder_length,
        train.decoder_length,
        micro_batch=train_runtime.micro_batch,
        tensor_parallel=tensor_parallel,
        precision=train.precision,
        # The attention kernels keep no scores, so there is nothing to be saved by computing them again.
        recompute=_held(train_runtime),
    )
    loss_total = loss_bytes(
        recipe.model,
        vocab,
        train.decoder_length,
        device=runtime.device.kind,
        micro_batch=train_runtime.micro_batch,
        tensor_parallel=tensor_parallel,
        precision=train.precision,
        frozen=train.adapter is not None,
    )
    stage_rows: list[ZeroMemory] = []
    # All stages, so that a reader sees which would fit; training itself has 1 to 3.
    for stage in (0, 1, 2, 3):
        state_total = state_bytes(
            count,
            zero_stage=stage,
            data_parallel=data_parallel_workers(runtime),
            tensor_parallel=tensor_parallel,
            precision=train.precision,
            fp32_gradients=train.precision == "bf16",  # as `openba.train.engine` accumulates them
            muon_parameters=_muon_count(recipe),
        )["total"]
        if train.adapter is not None:
            state_total = adapter_state_bytes(
                recipe.model,
                train.adapter,
                vocab,
                zero_stage=stage,
                data_parallel=data_parallel_workers(runtime),
                precision=train.precision,
            )
        total_bytes = state_total + activation_total + loss_total
        stage_rows.append(
            {
                "zero_stage": stage,
                "state": state_total,
                "activations": activation_total,
                "logits": loss_total,
                "total": total_bytes,
                "fits": total_bytes <= runtime.device.memory,
                "chosen": stage == train_runtime.zero_stage,
            }
        )
    return stage_rows
