"""What is computed on padding: packed batches of Stage I's mix counted by torch, padded ones by formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.figure import Figure
from benchmarks.model.speed import SHAPE
from openba.accounting.flops import train_flops, useful_train_flops
from openba.config import load
from openba.graph import find_config
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import Batch, TrainingBatches
from openba.train.objectives import training_samples

VOCAB = 250_368
_WORKERS, _MICRO = 2, 4


def padding_figures(inputs: Mapping[str, str]) -> Iterator[Figure]:
    """Useful shares of the FLOPs of Stage I's mix."""
    train = load(find_config("pretrain", "stage1"), TrainRecipe, ["batch=32"])
    yield _packed_share(train, inputs)
    yield _padded_share(train)


def _padded_share(train: TrainRecipe) -> Figure:
    """At full size, every row padded to 570/380."""
    model = load(find_config("model", "openba-15b"), ModelRecipe)
    assert isinstance(train.data, UL2Recipe)
    sizes = np.array([size for c in train.data.corruptions() for size in c.sizes(train.data.length)])
    useful = useful_train_flops(model, VOCAB, sizes[:, 0].tolist(), sizes[:, 1].tolist())
    whole = len(sizes) * train_flops(model, VOCAB, train.encoder_length, train.decoder_length)
    return Figure("train/useful_flops_padded", 100 * useful / whole, "%")


def _packed_share(train: TrainRecipe, inputs: Mapping[str, str]) -> Figure:
    """Of a step's micro-batches at full length: the formula's FLOPs by those that torch counted."""
    tokenizer = Tokenizer.load(Path(inputs["tokenizer"]))
    samples = training_samples(train, Path(inputs["data"]), "stage1", tokenizer)
    batches = TrainingBatches(samples, train, tokenizer.pad, tokenizer.size)
    recipe = ModelRecipe(
        d_model=SHAPE.hidden_size, num_heads=SHAPE.num_heads, kv_channels=SHAPE.kv_channels,
        ffn=SHAPE.ffn_hidden_size, encoder_layers=1, decoder_layers=3,
    )  # fmt: skip
    model = OpenBAModel(recipe.architecture(tokenizer.size))
    micro = [b for rank in range(_WORKERS) for b in batches.micro(0, rank, _WORKERS, _MICRO)]
    useful = sum(useful_train_flops(recipe, tokenizer.size, *_lengths(batch)) for batch in micro)
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        for batch in micro:
            model(batch.encoder_ids, batch.mask, batch.decoder_ids, batch.labels).backward()
    told = f"{sum(batch.tokens for batch in micro):,} tokens in {len(micro)} micro-batches of two workers"
    return Figure(
        "train/useful_flops_packed", 100 * useful / counter.get_total_flops(), "%", 97, "higher", told
    )


def _lengths(batch: Batch) -> tuple[list[int], list[int]]:
    used = (batch.labels != IGNORE).sum(1)
    return (batch.mask.sum(1) * (used > 0)).tolist(), used.tolist()


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""torch's counter does not know the CPU's kernels."""
