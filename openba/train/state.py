"""The training state of an engine as whole tensors by parameter name: fp32 weights and both moments.

Owns the way from DeepSpeed's partitions to that form and back, for ZeRO 1, 2 and 3, so that a checkpoint
knows neither the number of workers nor the ZeRO stage. Files are `checkpoint.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scaler remembers."""


def share(engine: Any, rank: int, world: int) -> dict[str, Tensor]:
    """This rank's part of all tensors, in host memory, as `part/parameter`. All ranks call it together.

    Parameters go round by size, largest first, to the rank that holds least so far.
    """
    _link(engine.optimizer)
    held, mine = [0] * world, {}
    for name, parameter in sorted(_parameters(engine), key=lambda pair: (-_numel(pair[1]), pair[0])):
        owner = held.index(min(held))
        held[owner] += _numel(parameter)
        for part, full in _full(engine, parameter):
            if owner == rank:
                mine[f"{part}/{name}"] = full.to("cpu", torch.float32, copy=True)
            del full
    return mine


def numbers(engine: Any) -> dict[str, Any]:
    """The scalars beside the tensors: Adam's step and the loss scaler's."""
    steps = [int(state["step"]) for state in engine.optimizer.optimizer.state.values() if "step" in state]
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {
        "adam_step": max(steps, default=0),
        "scaler": {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)},
    }


@torch.no_grad()
def restore(engine: Any, read: Callable[[str], Tensor], scalars: Mapping[str, Any]) -> None:
    """Put back what `share` and `numbers` gave, from whole tensors by name. Each rank takes its part."""
    if scalars["adam_step"]:
        _make_moments(engine, scalars["adam_step"])
    else:
        _forget_moments(engine)
    for name, parameter in _parameters(engine):
        full = read(f"{WEIGHT}/{name}")
        for part in (WEIGHT, *(MOMENTS if scalars["adam_step"] else ())):
            _set(engine, parameter, part, full if part == WEIGHT else read(f"{part}/{name}"))
        _set_computed(parameter, full)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key, value in scalars["scaler"].items():
        if hasattr(scaler, key):  # fp16's; others have none, or one that never moves
            setattr(scaler, key, value)


def _parameters(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return engine.module.named_parameters()


def _numel(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def _full(engine: Any, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    shape = getattr(parameter, "ds_shape", parameter.shape)
    yield WEIGHT, safe_get_full_fp32_param(parameter).view(shape)
    if any("step" in state for state in engine.optimizer.optimizer.state.values()):
        for moment in MOMENTS:
            yield moment, safe_get_full_optimizer_state(parameter, moment).view(shape)


def _make_moments(engine: Any, step: int) -> None:
    """AdamW makes its moments in its first step; a resumed run needs them before."""
    zero, adam = engine.optimizer, engine.optimizer.optimizer
    flats = getattr(zero, "fp32_partitioned_groups_flat", None)  # ZeRO 3
    if flats is None:
        flats = [flat for group in adam.param_groups for flat in group["params"]]
    for flat in flats:
        for moment in MOMENTS:
            adam.state[flat].setdefault(moment, torch.zeros_like(flat))
        adam.state[flat]["step"] = torch.tensor(float(step))
    _link(zero)


def _forget_moments(engine: Any) -> None:
    """As before AdamW's first step: zero moments are those that it would make."""
    for state in engine.optimizer.optimizer.state.values():
        for value in state.values():
            value.zero_()


def _link(zero: Any) -> None:
    """Let ZeRO 1 and 2 find each parameter's moments.

    DeepSpeed 0.19.8 does it once, after the first of its parameter groups has stepped: too early.
    """
    if hasattr(zero, "_hp_optimizer_states_linked") and zero.optimizer.state:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _set(engine: Any, parameter: nn.Parameter, part: str, full: Tensor) -> None:
    key = None if part == WEIGHT else part
    if not hasattr(parameter, "ds_id"):
        cast(Any, parameter).set_full_hp_param(full.to(parameter.device), key)
        return
    # DeepSpeed's own setter reads past the end of a tensor that the workers cannot share evenly.
    fragment, _ = engine.optimizer._get_fp32_opt_state_partition(
        parameter, release_swap_buffers=False, optim_state_key=key
    )
    _fill(fragment, full, engine.optimizer._get_param_partition_rank(parameter))


def _set_computed(parameter: nn.Parameter, full: Tensor) -> None:
    """The weights that the forward pass reads, in its precision."""
    partition = getattr(parameter, "ds_tensor", None)
    if partition is not None:
        import torch.distributed as dist

        _fill(partition.data, full, dist.get_rank())
    if partition is None or parameter.numel() == full.numel():
        parameter.data.copy_(full.view(parameter.shape))


def _fill(fragment: Tensor, full: Tensor, rank: int) -> None:
    """This rank's piece of `full`; what lies beyond its end is zero."""
    piece = full.flatten()[fragment.numel() * rank :][: fragment.numel()]
    fragment.zero_()
    fragment[: piece.numel()].copy_(piece)
