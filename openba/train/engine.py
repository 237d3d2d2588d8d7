"""DeepSpeed engine of one worker, and its config from recipe and runtime.

Loop and trainer see DeepSpeed through this class only; how its partitions become full tensors is
`state.py`'s. torch.distributed is initialised before, by the process that starts the worker.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from openba.json_types import JsonObject
from openba.model.blocks import DecoderBlock, EncoderBlock
from openba.model.flat_batch import FlatBatch
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.model.parallel import gathered
from openba.recipes.checks import accumulation_steps
from openba.recipes.runtime import PipelineRuntime, TrainRuntime
from openba.recipes.train import TrainRecipe
from openba.train.batches import Batch
from openba.train.groups import Groups
from openba.train.lean_deepspeed import add_gradients_at_once, import_deepspeed
from openba.train.optimizers import choose_optimizer, set_rate

warnings.filterwarnings("ignore", category=FutureWarning)  # torch 2.13: one line per ZeRO collective


def deepspeed_config(
    recipe: TrainRecipe,
    runtime: TrainRuntime,
    data_workers: int,
    device_kind: Literal["cpu", "cuda"] = "cpu",
) -> JsonObject:
    """Return the `ds_config` of this run, with the batch triangle resolved (no "auto": DeepSpeed rejects it).

    `world` is the number of data-parallel workers.
    """
    accumulation = accumulation_steps(recipe, runtime, data_workers)
    config: JsonObject = {
        "train_micro_batch_size_per_gpu": runtime.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": runtime.micro_batch * accumulation * data_workers,
        "gradient_clipping": recipe.optim.clip,
        # On CUDA gradients of stages 2 and 3 cross workers while others are computed. A CPU has no streams.
        "zero_optimization": {
            "stage": runtime.zero_stage,
            "overlap_comm": device_kind == "cuda" and runtime.zero_stage > 1,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        # It waits for the device twice a micro-batch, for a figure that `meter.py` has without waiting.
        "timers": {"throughput": {"enabled": False}},
        # DeepSpeed's default is the precision of the weights: a sum over workers would be rounded to bf16.
        "communication_data_type": "fp32",
    }
    if recipe.precision == "bf16":
        # Gradients are added to their fp32 sums as soon as they are there, and freed: the weights' precision
        # holds no second copy of all of them.
        config |= {
            "bf16": {"enabled": True, "immediate_grad_update": True},
            "data_types": {"grad_accum_dtype": "fp32"},
        }
    elif recipe.precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "initial_scale_power": 32,
            "loss_scale_window": 1000,
            "hysteresis": 2,
        }
    return config


class Engine:
    """A model under DeepSpeed on one worker."""

    def __init__(
        self, model: OpenBAModel, groups: Groups, recipe: TrainRecipe, runtime: PipelineRuntime
    ) -> None:
        """Take this worker's part of a model (`make_part`); `groups` are of `runtime.tensor_parallel`."""
        device = runtime.device
        train_runtime = runtime.train
        deepspeed = import_deepspeed(device.kind)
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = (
            torch.device("cuda", torch.cuda.current_device())
            if device.kind == "cuda"
            else torch.device("cpu")
        )
        self.groups = groups
        self.data_rank = self.groups.data_rank
        self.data_world = self.groups.data_size
        """Which batches this worker sees: those of a tensor-parallel group see the same."""
        # Before DeepSpeed wraps the model: its blocks read the setting in each forward pass.
        model.recompute(train_runtime.recompute)
        if train_runtime.compile:
            model.compile_blocks()
        self.is_half = recipe.precision != "fp32"
        self.begin(accumulation_steps(recipe, train_runtime, self.data_world), torch.ones(()))
        self.zero_stage = train_runtime.zero_stage
        self.micro_batch = train_runtime.micro_batch
        """Samples of the greatest length whose tokens fill a micro-batch."""
        self.padded = train_runtime.batches == "padded"
        self.vocab = model.architecture.vocab_size
        self.meetings = 0
        """Calls of `sum` by this worker; a worker with fewer than the others is the late one."""
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        self.optimizer = choose_optimizer(recipe.optim).build(model, is_fused=self.device.type == "cuda")
        if train_runtime.zero_stage == 3 and all(parameter.requires_grad for parameter in model.parameters()):
            # A block's weights are gathered together: hooks of its parts would be half of the host's time.
            # Not beside frozen ones: the first block's input then needs no gradient, and DeepSpeed 0.19.8
            # would free the block's weights as its backward pass begins.
            deepspeed.utils.set_z3_leaf_modules(model, [EncoderBlock, DecoderBlock])
        mpu = self.groups if self.groups.tensor.size > 1 else None
        deepspeed.utils.groups.mpu = mpu  # DeepSpeed keeps that of an engine before this one
        self.engine, *_ = deepspeed.initialize(
            model=model.to(self.device),
            optimizer=self.optimizer,
            config=deepspeed_config(recipe, train_runtime, self.data_world, device.kind),
            mpu=mpu,
            dist_init_required=False,
        )
        add_gradients_at_once(self.engine.optimizer)

    def begin(self, micro_batches: int, target_count: Tensor) -> None:
        """Set the micro-batches and target tokens of the next optimiser steps.

        Args:
            micro_batches: Of a step, the same number on every worker.
            target_count: Target tokens of a step over all workers, a scalar on the device: the host need not
                know it before the gradients are on their way.
        """
        self.accumulation = self._left = micro_batches
        # DeepSpeed averages over workers, so their number is multiplied back.
        self._loss_scale = (self.data_world / target_count.double().clamp(min=1)).float()

    def lay_out(self, batch: Batch) -> FlatBatch:
        """Return what the model computes of a batch, in host memory; any thread may call it.

        Raises:
            ValueError: an id outside the vocabulary; names the row.
        """
        return FlatBatch.lay_out(
            batch.encoder_ids, batch.mask, batch.decoder_ids, batch.labels,
            vocab=self.vocab, padded=self.padded,
        )  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        """Return the micro-batch's loss, summed over its target tokens: a scalar with a gradient."""
        self._computed = (batch.flat or self.lay_out(batch)).to(self.device)
        return self.engine(self._computed, gradient_scale=self._gradient_scale())

    def backward(self, loss: Tensor, is_usable: bool = True) -> None:
        """Accumulate gradients of loss / `target_count`.

        The result is the gradient of the mean over all target tokens of the step, whatever the number of
        workers and micro-batches.

        `is_usable=False` poisons the gradients: their norm is then not finite on every worker, and
        DeepSpeed drops the whole step on all of them through its own overflow path.
        """
        # The boundary is set by hand: the number of micro-batches varies from step to step.
        self._left -= 1
        self.engine.set_gradient_accumulation_boundary(self._left == 0)
        # NaN times the loss reaches every gradient, on every worker, whatever its own loss was.
        loss_scale = self._loss_scale if is_usable else math.nan
        self.engine.backward(loss * loss_scale, scale_wrt_gas=False)

    def _gradient_scale(self) -> Tensor | None:
        """Factor between the summed loss and what is differentiated; None in fp32, whose range needs none."""
        if not self.is_half:
            return None
        # BF16_Optimizer has no loss scale, ZeRO's optimisers have one that is 1 in bf16.
        return self._loss_scale * float(getattr(self.engine.optimizer, "loss_scale", 1.0))

    def step(self, lr: float) -> bool:
        """One micro-step; at the last of an accumulation the optimiser moves. False: it was dropped."""
        # Set here and not by a DeepSpeed scheduler, which would be one more state to save and restore.
        set_rate(self.optimizer, lr)
        self.engine.step()
        if self._left == 0:
            self._left = self.accumulation
        return bool(self.engine.was_step_applied())

    def gradient_norm(self) -> float | None:
        """Norm before clipping of the last step; None if it was not finite and the step was dropped."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None and math.isfinite(norm) else None

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """`scores` of one micro-batch, without gradients."""
        self.forward(batch)
        return self.scores(batch)

    def row_scores(self, row_count: int) -> Tensor:
        """Scores of each row of the batch that was computed last, float64 `[rows, 2]` on the device.

        Columns: summed loss; likeliest target tokens (0 where gradients were computed).
        """
        row_scores = torch.zeros(row_count, 2, dtype=torch.float64, device=self.device)
        token_scores = self.engine.module.token_scores.T.double()
        return row_scores.index_add_(0, self._computed.label_rows, token_scores)

    def scores(self, batch: Batch) -> Tensor:
        """Return the sums in host memory, with a third column of target tokens."""
        target_counts = (batch.labels != IGNORE).sum(1)
        row_scores = self.row_scores(len(target_counts)).cpu()
        return torch.cat([row_scores, target_counts[:, None].double()], dim=1)

    def mode(self, training: bool) -> None:
        """Dropout on or off."""
        self.engine.train(training)

    def sum(self, values: list[float]) -> list[float]:
        """Sum over all workers in float64; those of a tensor-parallel group count as one, with their mean."""
        return self.sum_on_device(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum_on_device(self, values: Tensor) -> Tensor:
        """Sum a float64 vector, from host or device; the result is on the device, not waited for."""
        # Counted before the collective: a worker that waits in it has come, one that is late has not.
        self.meetings += 1
        summed_values = values.to(self.device, copy=True)
        dist.all_reduce(summed_values)
        return summed_values / self.groups.tensor.size

    def share(self) -> tuple[dict[str, Tensor], JsonObject]:
        """Return this worker's share of the training state, and the scalars; all workers call it together."""
        from openba.train import state

        tensors = state.share(self.engine, self.rank, self.world, self.groups.tensor)
        return tensors, state.numbers(self.engine)

    def restore(self, read_tensor: Callable[[str], Tensor], numbers: Mapping[str, Any]) -> None:
        """Load the training state from full tensors by name, whatever number of workers wrote them."""
        from openba.train import state

        state.restore(self.engine, read_tensor, numbers, self.groups.tensor)

    def weights(self) -> dict[str, Tensor]:
        """Gather the trained weights in fp32 or the compute precision, in host memory, complete on rank 0.

        All workers call it together.
        """
        # Under ZeRO 3 no rank has a parameter in full; DeepSpeed gathers layer by layer.
        if self.zero_stage == 3:
            return self.engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        full_weights: dict[str, Tensor] = {}
        # Each to the host before the next is joined: all of them at once would be 29 GB on the first GPU.
        for parameter_name, parameter in self.engine.module.named_parameters():
            if not parameter.requires_grad:
                continue
            full_tensor = gathered(parameter, parameter.detach(), self.groups.tensor)
            if self.groups.tensor.size == 1 or self.rank == 0:
                full_weights[parameter_name] = full_tensor.cpu()
        return full_weights
