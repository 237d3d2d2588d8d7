"""Group `train`: equality of all ways of sharing and resuming a training, and its overheads.

Owns the order. Exact figures and errors come from groups of processes
(`tests/harness/worker_groups.py`), then memory, then a real Stage I and II, then times, which need a quiet
machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.figure import ROOT, Figure
from benchmarks.model.speed import SHAPE, stage1_batch
from benchmarks.timing import medians
from benchmarks.train import sharing, stages
from benchmarks.train.padding import padding_figures
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.recipes.architecture import Architecture
from tests.harness import worker_groups

# As in `benchmarks.model.loss_memory`.
VOCABULARY_SIZE = 250_368
TOKEN_COUNT = 2_048
HIDDEN_SIZE = 512
ROUNDS = 11
WIDE_SHAPE = replace(SHAPE, hidden_size=512, num_heads=8, ffn_hidden_size=2304)
"""Attention's scores and values, which both layouts compute for real tokens only on a CPU, are 11.2 % of this
architecture's FLOPs; of `SHAPE`'s 19.5 %, of the 15B's 1.8 %."""


def figures() -> Iterator[Figure]:
    """Yield errors, shares, memory, a real training, and times."""
    worker_groups.start_server()
    with tempfile.TemporaryDirectory(prefix="openba-train-") as folder:
        inputs = stages.make_inputs(Path(folder))
        yield from sharing.figures(Path(folder) / "sharing", inputs)
        yield from padding_figures(inputs)
        yield _vocabulary_memory()
        yield from stages.figures(Path(folder) / "stages", inputs)
    ratio = _ragged_against_padded(WIDE_SHAPE)
    yield Figure("train/ragged_against_padded", ratio, "x", 1.4, "higher", "padded layout", ratio)
    ratio = _ragged_against_padded(SHAPE)
    yield Figure("train/ragged_against_padded_narrow", ratio, "x", peer="padded layout", ratio=ratio)


def _ragged_against_padded(architecture: Architecture) -> float:
    """Time the same samples of Stage I forward and backward in both layouts on a CPU; return the speedup."""
    encoder_ids, mask, decoder_ids, labels = stage1_batch()
    torch.manual_seed(0)
    model = OpenBAModel(architecture)
    target_count = int((labels != IGNORE).sum())

    def run_step(padded: bool) -> None:
        model.zero_grad()
        (model.loss(encoder_ids, mask, decoder_ids, labels, padded) / target_count).backward()

    seconds = medians({"padded": lambda: run_step(True), "ragged": lambda: run_step(False)}, ROUNDS)
    return seconds["padded"] / seconds["ragged"]


def _vocabulary_memory() -> Figure:
    one_rank_bytes = _measure_vocabulary(1)
    two_rank_bytes = _measure_vocabulary(2)
    comparison = f"all words on one rank: {one_rank_bytes / 2**20:.0f} MiB"
    ratio = two_rank_bytes / one_rank_bytes
    return Figure("train/vocabulary_memory_of_tp2", 100 * ratio, "%", 55, peer=comparison, ratio=ratio)


def _measure_vocabulary(rank_count: int) -> int:
    command = [sys.executable, "-m", "benchmarks.train.figures", str(rank_count)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _vocabulary_bytes(rank_count: int) -> int:
    """Return the bytes that a tied embedding and head with their loss add to the first rank's peak.

    The rank is in a group of its own: what it holds does not depend on the other ranks' numbers.
    """
    import torch.distributed as dist

    from benchmarks.model.loss_memory import peak_bytes
    from openba.model.loss import linear_cross_entropy
    from openba.model.parallel_loss import TensorGroup, VocabularySoftmax

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    softmax: Any = VocabularySoftmax(TensorGroup(dist.group.WORLD, 0, rank_count))
    hidden = torch.empty(TOKEN_COUNT, HIDDEN_SIZE).normal_().requires_grad_()
    labels = torch.randint(VOCABULARY_SIZE // rank_count, (TOKEN_COUNT,))
    bytes_before = peak_bytes()
    weight = torch.empty(VOCABULARY_SIZE // rank_count, HIDDEN_SIZE).normal_(std=0.02).requires_grad_()
    (linear_cross_entropy(hidden, weight, None, labels, softmax=softmax) / TOKEN_COUNT).backward()
    return peak_bytes() - bytes_before


if __name__ == "__main__":
    print(_vocabulary_bytes(int(sys.argv[1])))
