"""Group `train`: what is computed on padding, and what a tensor-parallel rank holds of the vocabulary.

Owns these figures only. That all ways of sharing a model compute the same is asked in
`tests/train/test_parallel.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.figure import ROOT, Figure
from benchmarks.speed import SHAPE, stage1_batch
from benchmarks.timing import medians
from openba.accounting.flops import train_flops, useful_train_flops
from openba.config import load
from openba.graph import find_config
from openba.model.model import IGNORE, OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe, UL2Recipe

VOCAB, TOKENS, WIDTH = 250_368, 2_048, 512
"""As in `loss_memory`."""
ROUNDS = 7


def figures() -> Iterator[Figure]:
    """Shares, memory, then times."""
    yield _padding_share()
    one, two = (_peak(size) for size in (1, 2))
    told = f"all words on one rank: {one / 2**20:.0f} MiB"
    yield Figure("train/vocabulary_memory_of_tp2", 100 * two / one, "%", 55, peer=told, ratio=two / one)
    yield _ragged_against_padded()


def _padding_share() -> Figure:
    """Useful share of the FLOPs of Stage I's mix at full size, every row padded to 570/380."""
    train = load(find_config("pretrain", "stage1"), TrainRecipe)
    model = load(find_config("model", "openba-15b"), ModelRecipe)
    assert isinstance(train.data, UL2Recipe)
    sizes = np.array([d.longest(train.data.length, train.data.s_length) for d in train.data.denoisers])
    useful = useful_train_flops(model, VOCAB, sizes[:, 0].tolist(), sizes[:, 1].tolist())
    whole = len(sizes) * train_flops(model, VOCAB, train.encoder_length, train.decoder_length)
    return Figure("train/useful_flops_padded", 100 * useful / whole, "%")


def _ragged_against_padded() -> Figure:
    """The same samples of Stage I forward and backward in both layouts, on a CPU."""
    encoder_ids, mask, decoder_ids, labels = stage1_batch()
    torch.manual_seed(0)
    model, targets = OpenBAModel(SHAPE), int((labels != IGNORE).sum())

    def step(padded: bool) -> None:
        model.zero_grad()
        (model(encoder_ids, mask, decoder_ids, labels, padded) / targets).backward()

    seconds = medians({"padded": lambda: step(True), "ragged": lambda: step(False)}, ROUNDS)
    ratio = seconds["padded"] / seconds["ragged"]
    return Figure("train/ragged_against_padded", ratio, "x", 1.4, "higher", "padded layout", ratio)


def _peak(size: int) -> int:
    command = [sys.executable, "-m", "benchmarks.train", str(size)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _run(size: int) -> int:
    """Bytes that a tied embedding and head with their loss add to the peak on the first of `size` ranks.

    The rank stands in a group of its own: what it holds does not depend on its partners' numbers.
    """
    import torch.distributed as dist

    from benchmarks.loss_memory import peak
    from openba.model.loss import linear_cross_entropy
    from openba.model.parallel_loss import TensorGroup, VocabularySoftmax

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    softmax = VocabularySoftmax(TensorGroup(dist.group.WORLD, 0, size))
    hidden = torch.empty(TOKENS, WIDTH).normal_().requires_grad_()
    labels = torch.randint(VOCAB // size, (TOKENS,))
    before = peak()
    weight = torch.empty(VOCAB // size, WIDTH).normal_(std=0.02).requires_grad_()
    (linear_cross_entropy(hidden, weight, None, labels, softmax=softmax) / TOKENS).backward()
    return peak() - before


if __name__ == "__main__":
    print(_run(int(sys.argv[1])))
