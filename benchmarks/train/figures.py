"""Group `train`: that all ways of sharing and resuming a training are one, and what training wastes.

Owns the order. Exact figures and errors come from groups of processes (`gangs.py`), then memory, then a real
Stage I and II, then times, which want a quiet machine.
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
from tests.harness import gangs

VOCAB, TOKENS, WIDTH = 250_368, 2_048, 512
"""As in `loss_memory`."""
ROUNDS = 11
WIDE = replace(SHAPE, hidden_size=512, num_heads=8, ffn_hidden_size=2304)
"""Attention's scores and values, which both layouts compute for real tokens only on a CPU, are 11.2 % of this
shape's FLOPs; of the narrow one's 19.5 %, of the 15B's 1.8 %."""


def figures() -> Iterator[Figure]:
    """Errors, shares, memory, a real training, times."""
    gangs.start_server()
    with tempfile.TemporaryDirectory(prefix="openba-train-") as folder:
        inputs = stages.make_inputs(Path(folder))
        yield from sharing.figures(Path(folder) / "sharing", inputs)
        yield from padding_figures(inputs)
        yield _vocabulary_memory()
        yield from stages.figures(Path(folder) / "stages", inputs)
    ratio = _ragged_against_padded(WIDE)
    yield Figure("train/ragged_against_padded", ratio, "x", 1.4, "higher", "padded layout", ratio)
    ratio = _ragged_against_padded(SHAPE)
    yield Figure("train/ragged_against_padded_narrow", ratio, "x", peer="padded layout", ratio=ratio)


def _ragged_against_padded(shape: Architecture) -> float:
    """The same samples of Stage I forward and backward in both layouts, on a CPU."""
    encoder_ids, mask, decoder_ids, labels = stage1_batch()
    torch.manual_seed(0)
    model, targets = OpenBAModel(shape), int((labels != IGNORE).sum())

    def step(padded: bool) -> None:
        model.zero_grad()
        (model(encoder_ids, mask, decoder_ids, labels, padded) / targets).backward()

    seconds = medians({"padded": lambda: step(True), "ragged": lambda: step(False)}, ROUNDS)
    return seconds["padded"] / seconds["ragged"]


def _vocabulary_memory() -> Figure:
    one, two = (_peak(size) for size in (1, 2))
    told = f"all words on one rank: {one / 2**20:.0f} MiB"
    return Figure("train/vocabulary_memory_of_tp2", 100 * two / one, "%", 55, peer=told, ratio=two / one)


def _peak(size: int) -> int:
    command = [sys.executable, "-m", "benchmarks.train.figures", str(size)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _run(size: int) -> int:
    """Bytes that a tied embedding and head with their loss add to the peak on the first of `size` ranks.

    The rank stands in a group of its own: what it holds does not depend on its partners' numbers.
    """
    import torch.distributed as dist

    from benchmarks.model.loss_memory import peak
    from openba.model.loss import linear_cross_entropy
    from openba.model.parallel_loss import TensorGroup, VocabularySoftmax

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    softmax: Any = VocabularySoftmax(TensorGroup(dist.group.WORLD, 0, size))
    hidden = torch.empty(TOKENS, WIDTH).normal_().requires_grad_()
    labels = torch.randint(VOCAB // size, (TOKENS,))
    before = peak()
    weight = torch.empty(VOCAB // size, WIDTH).normal_(std=0.02).requires_grad_()
    (linear_cross_entropy(hidden, weight, None, labels, softmax=softmax) / TOKENS).backward()
    return peak() - before


if __name__ == "__main__":
    print(_run(int(sys.argv[1])))
