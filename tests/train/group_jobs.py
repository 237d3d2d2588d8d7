"""What only the tests let a worker group do (see `tests.harness.worker_groups`)."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.comm import comm
from deepspeed.runtime.zero.muon import original_muon

from openba.accounting.energy import EnergyMeter
from openba.accounting.estimate import estimated
from openba.accounting.operations import OperationCounter
from openba.artifacts import Build
from openba.train import stage, stopping
from openba.train import trainer as trainer_module
from openba.train.hooks import Hook
from openba.train.steps import FinishedStep
from openba.train.trainer import Trainer
from tests.harness import group_worker
from tests.harness.group_worker import BareTrainer, run_stage


def stopped_stage(build: Build) -> dict[str, Any]:
    """Asked to stop before it begins, so it does after a step; then it goes on."""
    if dist.get_rank() == 0:
        (build.out / stopping.REQUEST).touch()
    dist.barrier()
    with contextlib.suppress(stopping.Preempted):
        stage.build(build)
    return run_stage(build)


def metered_stage(build: Build) -> dict[str, Any]:
    """A stage on a machine whose counter of the processors rises by 7 J while it trains, and codecarbon.

    The rank that asks codecarbon leaves a file.
    """
    build = replace(build, runtime=build.runtime.model_copy(update={"codecarbon": "CHN"}))
    counter = build.out.with_name("powercap") / "intel-rapl:0" / "energy_uj"
    if dist.get_rank() == 0:
        counter.parent.mkdir(parents=True)
        texts = {"name": "package-0", "energy_uj": "1000000", "max_energy_range_uj": "262143328850"}
        for name, text in texts.items():
            counter.with_name(name).write_text(f"{text}\n")
    dist.barrier()

    class Consume(Hook):
        def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
            if dist.get_rank() == 0 and finished.step == 1:
                counter.write_text("8000000\n")

    def noted(country: str, pue: float) -> Any:
        build.out.with_name(f"estimate-of-rank-{dist.get_rank()}").touch()
        return estimated(country, pue)

    with (
        mock.patch.object(trainer_module, "EnergyMeter", partial(EnergyMeter, counter.parent.parent)),
        mock.patch.object(trainer_module, "estimated", noted),
    ):
        return Trainer(build, hooks=[Consume()]).run()


def in_fp16(build: Build, function: str, **options: Any) -> dict[str, Any]:
    """A job of `group_worker`, on a CPU that DeepSpeed takes for too slow at fp16; torch computes it."""
    with mock.patch.object(get_accelerator(), "is_fp16_supported", return_value=True):
        return getattr(group_worker, function)(build, **options)


def skip_a_step(build: Build) -> dict[str, Any]:
    """Three steps, the second poisoned; then two without it."""
    with_skip, kept = _steps(build, [(0, True), (1, False), (2, True)])
    without, _ = _steps(build, [(0, True), (2, True)])
    return {"applied": kept, "with_skip": with_skip, "without": without}


def _steps(build: Build, steps: list[tuple[int, bool]]) -> tuple[list[list[str]], list[bool]]:
    """Per step: the digest of every rank's weights after it; and whether it was applied."""
    trainer = BareTrainer(build)
    digests, applied = [_digests(trainer)], []
    for step, usable in steps:
        applied.append(trainer.step(step, usable=usable)[1])
        digests.append(_digests(trainer))
    return digests, applied


def _digests(trainer: BareTrainer) -> list[str]:
    weights = trainer.engine.weights().values()
    own = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights)).hexdigest()
    everyone: list[str] = [""] * trainer.engine.world
    dist.all_gather_object(everyone, own)
    return everyone


def gradient_bytes(build: Build) -> float:
    """Bytes that a parameter's gradient moves on its way into the fp32 sum of a micro-batch."""
    optimizer = BareTrainer(build).engine.engine.optimizer
    parameters = [
        (parameter, i, j)
        for i, group in enumerate(optimizer.bf16_groups)
        for j, parameter in enumerate(group)
    ]
    for parameter, _, _ in parameters:
        parameter.grad = torch.ones_like(parameter)
    with OperationCounter() as counter:
        for parameter, group, index in parameters:
            optimizer.accumulate_hp_grads_and_remove_lp(parameter, group, index)
    assert all(parameter.grad is None for parameter, _, _ in parameters)
    return sum(cost.bytes for cost in counter.parts.values()) / sum(p.numel() for p, _, _ in parameters)


def muon_updates(build: Build) -> dict[str, Any]:
    """Shapes of the matrices that the workers orthogonalise in a step, and of those that the model has."""
    trainer = BareTrainer(build)
    module = trainer.engine.engine.module
    matrices = [tuple(p.shape) for p in module.parameters() if getattr(p, "use_muon", False)]
    orthogonalise = original_muon.muon_update
    shapes = []

    def watched(gradient: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        shapes.append(tuple(gradient.shape))
        return orthogonalise(gradient, *arguments, **options)

    with mock.patch.object(original_muon, "muon_update", watched):
        trainer.step(0)
    of_all_workers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all_workers, shapes)
    others = [name for name, p in module.named_parameters() if not getattr(p, "use_muon", False)]
    return {"matrices": matrices, "updated": list(chain(*of_all_workers)), "others": others}


def reduced(build: Build) -> list[tuple[str, int]]:
    """Dtype and elements of what workers with other data reduce in a step, scalars left out."""
    trainer = BareTrainer(build)
    seen: list[tuple[str, int]] = []
    # Workers that share weights exchange activations, in the precision of the weights.
    sharing_weights = trainer.engine.groups.tensor.handle

    def watched(reduce: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if sharing_weights is not None and options.get("group") is sharing_weights:
                return reduce(*arguments, **options)
            tensors = [each for each in (*arguments, *options.values()) if isinstance(each, torch.Tensor)]
            seen.extend((str(each.dtype), each.numel()) for each in tensors[-1:] if each.numel() > 64)
            return reduce(*arguments, **options)

        return call

    # DeepSpeed looks the first two up when it reduces, the last one, of ZeRO 3, when it is loaded.
    places = [(dist, "all_reduce"), (dist, "reduce"), (comm.cdb, "reduce_scatter_function")]
    with contextlib.ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, watched(getattr(owner, name))))
        trainer.step(0)
    return seen
