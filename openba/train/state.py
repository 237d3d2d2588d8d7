"""Training state of an engine as full tensors by parameter name: fp32 weights and the optimiser's moments.

Owns the way from DeepSpeed's partitions to that form and back, for ZeRO 1, 2 and 3 and tensor-parallel parts,
so that a checkpoint depends neither on the number of workers nor on how they shared the model. Files are
`checkpoint.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from openba.json_types import JsonObject
from openba.model.parallel import gathered, taken
from openba.model.parallel_loss import TensorGroup
from openba.train.optimizers import group_state, parameter_state

DeepSpeedEngine = Any
"""DeepSpeed declares no types, and what is read here is private to it."""
WEIGHT = "weight"
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scaler remembers."""


def share(engine: DeepSpeedEngine, rank: int, world_size: int, group: TensorGroup) -> dict[str, Tensor]:
    """Return this rank's part of all tensors, in host memory, as `part/parameter`. All ranks call it.

    Parameters go round by size, largest first, to the rank that holds least so far. `group` are the ranks
    that share each weight.
    """
    _link(engine.optimizer)
    held_elements = [0] * world_size
    own_tensors = {}
    # Largest first, so that the last ones even out what the ranks hold.
    for name, parameter in sorted(_parameters(engine), key=lambda pair: (-_numel(pair[1]), pair[0])):
        owner = held_elements.index(min(held_elements))
        held_elements[owner] += _numel(parameter)
        for part, piece in _full(engine, parameter):
            full_tensor = gathered(parameter, piece, group)
            if owner == rank:
                own_tensors[f"{part}/{name}"] = full_tensor.to("cpu", torch.float32, copy=True)
            del full_tensor, piece
    return own_tensors


def numbers(engine: DeepSpeedEngine) -> JsonObject:
    """Return the scalars beside the tensors: Adam's step and the loss scaler's."""
    steps = [int(state["step"]) for state in engine.optimizer.optimizer.state.values() if "step" in state]
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {
        "adam_step": max(steps, default=0),
        "scaler": {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)},
    }


@torch.no_grad()
def restore(
    engine: DeepSpeedEngine,
    read_tensor: Callable[[str], Tensor],
    scalars: Mapping[str, Any],
    group: TensorGroup,
) -> None:
    """Load what `share` and `numbers` returned, from full tensors by name. Each rank takes its part."""
    if scalars["adam_step"]:
        _make_moments(engine, scalars["adam_step"])
    else:
        _forget_moments(engine)
    # Tensors are mapped files: each rank reads the whole of one at a time and keeps its piece.
    for name, parameter in _parameters(engine):
        for part in (WEIGHT, *(parameter_state(parameter) if scalars["adam_step"] else ())):
            local_tensor = taken(parameter, read_tensor(f"{part}/{name}"), group)
            _set(engine, parameter, part, local_tensor)
            if part == WEIGHT:
                _set_computed(parameter, local_tensor)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key, value in scalars["scaler"].items():
        if hasattr(scaler, key):  # fp16's; others have none, or one that never moves
            setattr(scaler, key, value)


def _parameters(engine: DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter]]:
    """Trained parameters by name; frozen ones are those of the start."""
    return (
        (name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad
    )


def _numel(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def _full(engine: DeepSpeedEngine, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    full_shape = getattr(parameter, "ds_shape", parameter.shape)
    yield WEIGHT, safe_get_full_fp32_param(parameter).view(full_shape)
    if any("step" in state for state in engine.optimizer.optimizer.state.values()):
        for moment_name in parameter_state(parameter):
            yield moment_name, safe_get_full_optimizer_state(parameter, moment_name).view(full_shape)


def _make_moments(engine: DeepSpeedEngine, step: int) -> None:
    """Make the moments that an optimiser makes in its first step; a resumed run needs them before."""
    zero_optimizer = engine.optimizer
    optimizer = zero_optimizer.optimizer
    zero3_partitions = getattr(zero_optimizer, "fp32_partitioned_groups_flat", None)
    if zero3_partitions is None:
        partitions = [(flat, group) for group in optimizer.param_groups for flat in group["params"]]
    else:  # pieces of all groups, which are AdamW's
        partitions = [(flat, optimizer.param_groups[0]) for flat in zero3_partitions]
    for flat_partition, group in partitions:
        state = optimizer.state[flat_partition]
        for moment_name in group_state(group):
            state.setdefault(moment_name, torch.zeros_like(flat_partition))
        if "betas" in group:  # only Adam counts its steps
            state["step"] = step_counter(step, flat_partition, bool(group["fused"]))
    _link(zero_optimizer)


def step_counter(step: int, weight: Tensor, is_fused: bool) -> Tensor:
    """Return Adam's count of steps, an fp32 scalar, where its kernel looks for it."""
    # The fused kernel counts on the weight's device; the others read the count on the host.
    return torch.tensor(float(step), device=weight.device if is_fused else "cpu")


def _forget_moments(engine: DeepSpeedEngine) -> None:
    """Return to the state before the first step: zero moments are those that it would make."""
    for state in engine.optimizer.optimizer.state.values():
        for value in state.values():
            value.zero_()


def _link(zero_optimizer: DeepSpeedEngine) -> None:
    """Let ZeRO 1 and 2 find each parameter's moments.

    DeepSpeed 0.19.8 does it once, after the first of its parameter groups has stepped: too early.
    """
    if hasattr(zero_optimizer, "_hp_optimizer_states_linked") and zero_optimizer.optimizer.state:
        zero_optimizer._hp_optimizer_states_linked = False
        zero_optimizer._lazy_init_hp_params_optimizer_state()


def _set(engine: DeepSpeedEngine, parameter: nn.Parameter, part: str, full_tensor: Tensor) -> None:
    state_key = None if part == WEIGHT else part
    if not hasattr(parameter, "ds_id"):
        cast(Any, parameter).set_full_hp_param(full_tensor.to(parameter.device), state_key)
        return
    # DeepSpeed's own setter reads past the end of a tensor that the workers cannot share evenly.
    fragment, _ = engine.optimizer._get_fp32_opt_state_partition(
        parameter, release_swap_buffers=False, optim_state_key=state_key
    )
    _fill(fragment, full_tensor, engine.optimizer._get_param_partition_rank(parameter))


def _set_computed(parameter: nn.Parameter, full_tensor: Tensor) -> None:
    """Return the weights that the forward pass reads, in its precision."""
    partition = getattr(parameter, "ds_tensor", None)
    if partition is not None:
        import torch.distributed as dist

        _fill(partition.data, full_tensor, dist.get_rank())
    if partition is None or parameter.numel() == full_tensor.numel():
        parameter.data.copy_(full_tensor.view(parameter.shape))


def _fill(fragment: Tensor, full_tensor: Tensor, rank: int) -> None:
    """Copy this rank's piece of `full`; beyond the end of `full` the fragment is zero."""
    piece = full_tensor.flatten()[fragment.numel() * rank :][: fragment.numel()]
    fragment.zero_()
    fragment[: piece.numel()].copy_(piece)
