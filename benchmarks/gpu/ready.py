"""Group `gpu-ready`: figures of the GPU path that need no GPU, from meta tensors and the real packer.

Nothing is timed but the packer. The same budgets are asserted by `tests/model/test_meta.py`,
`tests/accounting/test_counts.py` and `tests/train/test_packing.py`; the dtype and bytes of gradients, which
need groups of processes, by `tests/train/test_engine.py`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.figure import Figure
from openba.accounting.fusion import FusionCounter
from openba.accounting.operations import OperationCounter
from openba.accounting.roofline import predict
from openba.config import find_config, load
from openba.model.blocks import FullAttention
from openba.model.flat_batch import FlatBatch
from openba.model.loss import linear_cross_entropy
from openba.model.model import OpenBAModel
from openba.model.rows import Rows, first
from openba.recipes.architecture import Architecture
from openba.recipes.model import ModelRecipe
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainRecipe, TrainStep, WindowsRecipe
from openba.train.packing import packed

META = torch.device("meta")
VOCABULARY_SIZE = 250_368
_READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"}
_SMALL = Architecture(
    vocab_size=64, hidden_size=32, kv_channels=16, num_heads=2, ffn_hidden_size=64, num_layers=2,
    num_decoder_layers=3, norm="rmsnorm", sandwich_norm=True,
)  # fmt: skip


def figures() -> Iterator[Figure]:
    """Yield reads, graphs, launches, bytes, packing, and predictions."""
    for padded in (False, True):
        reads = _host_reads(padded)
        yield Figure(f"gpu-ready/host_reads_{'padded' if padded else 'packed'}", reads, "reads", 0)
    yield from _graphs()
    yield from _decoder_block()
    yield from _loss()
    yield from _packing()
    yield from _predictions()


class _ReadCounter(TorchDispatchMode):
    """Counts operations for which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.reads += func.overloadpacket.__name__ in _READS
        return func(*args, **(kwargs or {}))


def _host_reads(padded: bool) -> int:
    with META:
        model = OpenBAModel(_SMALL).bfloat16().train()
    batch = _random_batch([(7, 4), (3, 2), (5, 6)], padded).to(META)
    with _ReadCounter() as counter:
        model(batch).backward()
    return counter.reads


def _random_batch(row_lengths: list[tuple[int, int]], padded: bool = False) -> FlatBatch:
    source_lengths, target_lengths = (torch.tensor(side) for side in zip(*row_lengths, strict=True))
    mask = first(source_lengths, int(source_lengths.max()))
    is_target = first(target_lengths, int(target_lengths.max()))
    encoder_ids, targets = (torch.randint(3, _SMALL.vocab_size, grid.shape) for grid in (mask, is_target))
    labels = targets.masked_fill(~is_target, -100)
    return FlatBatch.lay_out(encoder_ids, mask, targets, labels, vocab=_SMALL.vocab_size, padded=padded)


def _graphs() -> Iterator[Figure]:
    """Count graphs of both kinds of block over twelve random ragged batches; a break would raise."""
    graph_sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graph_sizes.extend([1] if any(node.op.startswith("call") for node in graph.graph.nodes) else [])
        return aot_eager(graph, inputs)

    with META:
        model = OpenBAModel(_SMALL).bfloat16().train()
    model.compile_blocks(backend)
    draw = random.Random(0)
    for _ in range(12):
        lengths = [(draw.randint(1, 19), draw.randint(1, 12)) for _ in range(draw.randint(1, 7))]
        model(_random_batch(lengths).to(META)).backward()
    yield Figure("gpu-ready/graphs_per_kind_of_block", len(graph_sizes) / 2, "graphs", 2)


def _decoder_block() -> Iterator[Figure]:
    """Count the 15B model's decoder block, forward and backward, 21 packed rows of 430 + 200 tokens."""
    with META:
        model = OpenBAModel(_paper_model().architecture(1000)).bfloat16()
    source_rows, target_rows = (
        Rows.ragged(first(torch.tensor([length] * 21), 500)).to(META) for length in (430, 200)
    )
    hidden_states, encoder_output = (
        torch.zeros(21 * length, 4096, dtype=torch.bfloat16, device=META, requires_grad=True)
        for length in (200, 430)
    )
    rotary_angles = torch.zeros(2, 21 * 200, 1, 64, device=META)
    attention = FullAttention(target_rows, encoder_output, source_rows, dropout=0.1)
    block = model.decoder.block[0]

    def run_block() -> None:
        output = block(hidden_states, rotary_angles, 0, attention)
        output.backward(torch.zeros_like(output))

    with OperationCounter() as eager:
        run_block()
    fused = FusionCounter()
    block.compile(backend=fused, fullgraph=True)
    run_block()
    compiled_launches = fused.fused.launches + fused.extern_launches
    yield Figure("gpu-ready/decoder_block_launches_eager", eager.launches, "", 90)
    yield Figure("gpu-ready/decoder_block_launches_compiled", compiled_launches, "", 40)
    eager_bytes = eager.parts["other"].bytes
    yield Figure("gpu-ready/decoder_block_other_bytes_eager", eager_bytes / 1e9, "GB")
    share = 100 * fused.fused.bytes / eager_bytes
    yield Figure("gpu-ready/decoder_block_other_bytes_compiled", share, "%", 50, peer="eager")


def _loss() -> Iterator[Figure]:
    tokens = 1_056
    hidden_states, weight = (
        torch.zeros(rows, 4096, dtype=torch.bfloat16, device=META, requires_grad=True)
        for rows in (tokens, VOCABULARY_SIZE)
    )
    scale = torch.zeros((), device=META)
    labels = torch.zeros(tokens, dtype=torch.int64, device=META)
    with OperationCounter() as counter:
        (linear_cross_entropy(hidden_states, weight, None, labels, gradient_scale=scale) * scale).backward()
    yield Figure("gpu-ready/loss_other_bytes", counter.parts["other"].bytes / 1e9, "GB", 15)


def _packing() -> Iterator[Figure]:
    """Pack a step of Stage I for eight workers, micro-batch 4."""
    recipe = load(find_config("pretrain", "stage1"), TrainRecipe)
    assert isinstance(recipe.data, WindowsRecipe)
    kinds = [corruption.sizes(recipe.data.length)[0] for corruption in recipe.data.corruptions()]
    lengths = np.array(kinds)[np.random.default_rng(0).integers(len(kinds), size=4096)].T
    token_room = (4 * recipe.encoder_length, 4 * recipe.decoder_length)
    seconds = []
    for _ in range(5):
        started = time.process_time()  # one thread: what a background thread of a training pays
        shares = packed(lengths, 8, token_room)
        seconds.append(time.process_time() - started)
    yield Figure("gpu-ready/packing_seconds", min(seconds), "s", 0.05)
    yield Figure("gpu-ready/packing_micro_batches", len(shares[0]), "", 96)


def _predictions() -> Iterator[Figure]:
    """Predict Stage I on the presets, from counts."""
    step = TrainStep(
        model=_paper_model(), train=load(find_config("pretrain", "stage1"), TrainRecipe), part="stage1"
    )
    for preset, target in (("paper", 52.0), ("h100x8", 50.0), ("h200x8", None)):
        predicted = predict(step, load(find_config("runtime", preset), PipelineRuntime), 250_203)
        parts = ", ".join(f"{part} {1e3 * seconds:.0f}" for part, seconds in predicted.micro_batch.items())
        comparison = f"{predicted.seconds:.1f} s a step; ms a micro-batch: {parts}"
        share = 100 * predicted.useful_mfu
        yield Figure(f"gpu-ready/useful_mfu_{preset}", share, "%", target, "higher", comparison)


def _paper_model() -> ModelRecipe:
    return load(find_config("model", "openba-15b"), ModelRecipe)
