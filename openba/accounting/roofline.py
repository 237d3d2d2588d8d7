"""Seconds of a training step on GPUs, predicted part by part from counts of the real code.

Owns the model: which part is bound by arithmetic, by memory or by a link, and what is hidden behind what. The
counts are `counts.py`'s, of meta tensors; peaks and bandwidths are the runtime file's, from data sheets. No
figure here was measured on this code: the constants below say where they are from, and the prediction is
compared with published trainings in `tests/accounting/test_roofline.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from openba.accounting.counts import PartCount, count_model, share_of
from openba.accounting.flops import parameters, run_flops, trained_share, useful_run_flops
from openba.accounting.operations import Product
from openba.recipes.adapter import adapter_parameters
from openba.recipes.architecture import Architecture
from openba.recipes.checks import data_parallel_workers
from openba.recipes.runtime import DeviceRuntime, PipelineRuntime
from openba.recipes.train import TrainRecipe, TrainStep, WindowsRecipe

_PRODUCT_SHARE = 0.68
"""Of the peak that a matrix product reaches whose tiles fill all multiprocessors: chosen so that two
published trainings come out (`tests/accounting/test_roofline.py`); 0.57 to 0.7 are usual."""
_TILE = (128, 256)
"""Rows and columns of a product that one multiprocessor computes at a time."""
_MEMORY_SHARE = 0.85
"""Of the memory's bandwidth that a streaming kernel reaches."""
ATTENTION_SHARE = 0.3
"""Of the peak that flash attention 2 reaches at some hundred tokens a row, both passes together."""
_LAUNCH_SECONDS = 8e-6
"""Host time of an eager operation with its autograd node; the device waits only if it has less to do."""
FUSED_SHARE = 0.45
"""Of eager elementwise bytes that compiled blocks move: `python -m benchmarks gpu-ready` counts it."""
_FUSED_LAUNCHES = 0.5
GRADIENT_BYTES = {1: 10, 2: 33, 3: 33}
"""Bytes a parameter and micro-batch by ZeRO stage, counted on DeepSpeed 0.19.8."""
_OPTIMIZER_BYTES = 34
"""A parameter of a rank's share: weight and moments read and written, gradient, norm, bf16 weight."""
_HIDDEN_SHARE = 0.6
"""Of the computing time that a collective beside it can hide behind."""
_GATHER_HOST_SECONDS = 0.15
"""Host time of ZeRO 3's hooks a micro-batch with blocks as leaf modules, for 48 blocks."""
_PACKED_SHARE = 0.99
"""Of a micro-batch's room that `openba.train.packing` fills."""
ATTENTION_PASSES = 3.5
"""Forward FLOPs of attention that both passes take: the backward pass multiplies five times, not four."""


@dataclass(frozen=True)
class StepTime:
    """A predicted optimiser step of one worker, in seconds."""

    micro_batches: int
    micro_batch: dict[str, float]
    """Seconds of a micro-batch by part; their sum is the device's, unless `host` is more."""
    once: dict[str, float]
    """Seconds of what happens once a step."""
    seconds: float
    padded_mfu: float
    """Share of the peak by the model's FLOPs at the recipe's full lengths."""
    useful_mfu: float
    """Share of the peak by the model's FLOPs on real tokens."""

    @property
    def limit(self) -> str:
        """The part that takes longest beside the matrix products."""
        parts = {**self.micro_batch, **self.once}
        return max((name for name in parts if name != "products"), key=lambda name: parts[name])


def predict(recipe: TrainStep, runtime: PipelineRuntime, vocab: int) -> StepTime:
    """Predict a step of `runtime`'s devices, which state their bandwidths."""
    train = recipe.train
    device = runtime.device
    train_runtime = runtime.train
    ranks = runtime.tensor_parallel
    workers = data_parallel_workers(runtime)
    rows = _micro_batch_lengths(train, train_runtime.micro_batch, train_runtime.batches == "padded")
    micro_batches = math.ceil(train.batch / workers / rows.samples)
    architecture = recipe.model.architecture(vocab)
    rank_part = share_of(architecture, ranks)
    counted = count_model(rank_part, rows.source, rows.target)
    blocks = [
        (counted.encoder_block, architecture.num_layers),
        (counted.decoder_block, architecture.num_decoder_layers),
    ]
    is_full = train_runtime.recompute == "full"
    product_time = 0.0
    for (block, number), tokens in zip(blocks, (sum(rows.source), sum(rows.target)), strict=True):
        again = _recomputed_share(block, tokens, rank_part) if is_full else 0.0
        product_time += number * (1 + again) * product_seconds(block.products, device)
    # Blocks by number, then what recomputation and the compiler make of them.
    elementwise = float(sum(number * block.other_bytes for block, number in blocks))
    launches = float(sum(number * block.launches for block, number in blocks))
    # Both stacks once more but for their products, unless the compiler keeps what is cheap to keep.
    if is_full or (train_runtime.recompute == "selective" and not train_runtime.compile):
        elementwise *= 4 / 3
        launches *= 4 / 3
    if train_runtime.compile:
        elementwise *= FUSED_SHARE
        launches *= _FUSED_LAUNCHES
    bandwidth = memory_bandwidth(device)
    parameter_count = sum(parameters(recipe.model, vocab).values()) / ranks
    # Frozen weights have no gradients; ZeRO still gathers them.
    computed_share = trained_share(train)
    trained_count = (
        parameter_count if train.adapter is None else adapter_parameters(recipe.model, train.adapter)
    )
    parts = {
        "products": computed_share * product_time,
        "elementwise": elementwise / bandwidth,
        "head": computed_share * product_seconds(counted.rest.products, device)
        + counted.rest.other_bytes / bandwidth,
        "attention": _attention_seconds(recipe, rows, ranks, device, is_full),
        "gradients": GRADIENT_BYTES[train_runtime.zero_stage] * trained_count / bandwidth,
        "tensor parallel": _tensor_parallel_seconds(architecture, rows, ranks, device, is_full),
    }
    computing = sum(parts.values())
    parts["ZeRO"] = _exposed(_zero_seconds(parameter_count, runtime, workers), computing)
    host = (launches + counted.rest.launches) * _LAUNCH_SECONDS
    host += _GATHER_HOST_SECONDS * (train_runtime.zero_stage == 3)
    parts["host"] = max(0.0, host - sum(parts.values()))
    once = {
        "optimiser": _OPTIMIZER_BYTES * trained_count / workers / bandwidth,
        "reduction": _reduction_seconds(trained_count, runtime, workers),
    }
    seconds = micro_batches * sum(parts.values()) + sum(once.values())
    peak = device.peak_tflops * 1e12 * runtime.train.workers * seconds
    return StepTime(
        micro_batches, parts, once, seconds,
        padded_mfu=_padded_flops(recipe, vocab) / peak,
        useful_mfu=_useful_flops(recipe, vocab) / peak,
    )  # fmt: skip


@dataclass(frozen=True)
class _Lengths:
    """Rows of one micro-batch."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    samples: float
    """Samples of a micro-batch on average over a step."""


def _micro_batch_lengths(train: TrainRecipe, micro_batch: int, padded: bool) -> _Lengths:
    """Lengths of a usual micro-batch; of instruction data, whose lengths are unknown before, full ones."""
    if padded or not isinstance(train.data, WindowsRecipe):
        return _Lengths(
            (train.encoder_length,) * micro_batch, (train.decoder_length,) * micro_batch, samples=micro_batch
        )
    kinds = [
        sizes for corruption in train.data.corruptions() for sizes in [corruption.sizes(train.data.length)]
    ]
    source = sum(sum(s for s, _ in sizes) / len(sizes) for sizes in kinds) / len(kinds)
    target = sum(sum(t for _, t in sizes) / len(sizes) for sizes in kinds) / len(kinds)
    fill = 0.99  # what the packer reaches, see `openba.train.packing`
    samples = fill * micro_batch * min(train.encoder_length / source, train.decoder_length / target)
    rows = max(1, round(samples))
    # As many rows as there are on average; their lengths make up the average tokens.
    scale = samples / rows
    return _Lengths((round(source * scale),) * rows, (round(target * scale),) * rows, samples)


def product_seconds(products: Iterable[Product], device: DeviceRuntime) -> float:
    """Seconds of matrix products, each bound by arithmetic or by memory."""
    seconds = 0.0
    for product in products:
        tiles = math.ceil(product.rows / _TILE[0]) * math.ceil(product.columns / _TILE[1])
        # The last wave of tiles occupies all multiprocessors, however few it is for.
        waves = math.ceil(tiles / device.multiprocessors)
        filled = product.rows * product.columns / (waves * device.multiprocessors * math.prod(_TILE))
        arithmetic = product.flops / (device.peak_tflops * 1e12 * _PRODUCT_SHARE * max(filled, 0.3))
        sides = (
            product.rows * product.inner + product.inner * product.columns + product.rows * product.columns
        )
        seconds += max(arithmetic, 2 * sides / memory_bandwidth(device))
    return seconds


def memory_bandwidth(device: DeviceRuntime) -> float:
    """Bytes a second that streaming kernels reach; a device without the figure is not predicted."""
    assert device.memory_bandwidth is not None
    return device.memory_bandwidth * 1e9 * _MEMORY_SHARE


def _recomputed_share(block: PartCount, tokens: int, rank_part: Architecture) -> float:
    """Return what `recompute: full` adds to a block's products: the forward ones but the last."""
    # torch stops when it has what the backward pass needs, and nothing needs a block's output.
    total_flops = sum(product.flops for product in block.products)
    last_flops = 2 * tokens * rank_part.hidden_size * rank_part.ffn_inner
    return (total_flops / 3 - last_flops) / total_flops


def _attention_seconds(
    recipe: TrainStep, rows: _Lengths, ranks: int, device: DeviceRuntime, is_full: bool
) -> float:
    model = recipe.model
    pairs = sum(
        model.encoder_layers * s * s + model.decoder_layers * (t * t / 2 + s * t)
        for s, t in zip(rows.source, rows.target, strict=True)
    )
    flops = 4 * model.num_heads * model.kv_channels / ranks * pairs
    return (ATTENTION_PASSES + is_full) * flops / (ATTENTION_SHARE * device.peak_tflops * 1e12)


def _tensor_parallel_seconds(
    architecture: Architecture, rows: _Lengths, ranks: int, device: DeviceRuntime, is_full: bool
) -> float:
    if ranks == 1:
        return 0.0
    # Two sums an encoder block forward and two backward, three a decoder block; recomputed but for the last.
    tokens = (4 + is_full) * architecture.num_layers * sum(rows.source)
    tokens += (6 + 2 * is_full) * architecture.num_decoder_layers * sum(rows.target)
    return all_reduce_seconds(2 * architecture.hidden_size * tokens, ranks, device.link_bandwidth)


def all_reduce_seconds(moved_bytes: float, ranks: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce of so many bytes at a bus bandwidth in GB/s."""
    return 2 * (ranks - 1) / ranks * moved_bytes / (bandwidth * 1e9)


def _between(runtime: PipelineRuntime, workers: int) -> float:
    """Bandwidth between workers with other data, GB/s: the slowest link of their ring."""
    device = runtime.device
    is_one_node = workers * runtime.tensor_parallel <= device.devices_per_node
    return device.link_bandwidth if is_one_node else device.network_bandwidth


def _zero_seconds(parameter_count: float, runtime: PipelineRuntime, workers: int) -> float:
    """Return collectives of a micro-batch: gradients in fp32, and at stage 3 the weights twice in bf16."""
    stage = runtime.train.zero_stage
    if workers == 1 or stage == 1:
        return 0.0
    moved_bytes = parameter_count * (4 if stage == 2 else 4 + 2 * 2)
    return (workers - 1) / workers * moved_bytes / (_between(runtime, workers) * 1e9)


def _reduction_seconds(parameter_count: float, runtime: PipelineRuntime, workers: int) -> float:
    """Return collectives of a step: gradients in fp32 at stage 1, new weights in bf16 at stages 1 and 2."""
    if workers == 1 or runtime.train.zero_stage == 3:
        return 0.0
    bandwidth = _between(runtime, workers)
    gathered = (workers - 1) / workers * 2 * parameter_count / (bandwidth * 1e9)
    if runtime.train.zero_stage == 2:
        return gathered
    return gathered + all_reduce_seconds(4 * parameter_count, workers, bandwidth)


def _exposed(collective: float, computing: float) -> float:
    """Return the time of collectives that computation beside them does not hide."""
    return max(0.05 * collective, collective - _HIDDEN_SHARE * computing)


def _padded_flops(recipe: TrainStep, vocab: int) -> float:
    return run_flops(recipe, vocab) / recipe.train.steps


def _useful_flops(recipe: TrainStep, vocab: int) -> float:
    useful = useful_run_flops(recipe, vocab, "none")
    return _padded_flops(recipe, vocab) if useful is None else useful[0] / recipe.train.steps
