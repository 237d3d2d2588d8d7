"""Share of FLOPs computed on real tokens: packed batches counted by torch, padded ones by formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.figure import Figure
from benchmarks.model.speed import SHAPE
from openba.accounting.flops import train_flops, useful_train_flops
from openba.config import find_config, load
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import Batch, TrainingBatches
from openba.train.objectives import training_samples

VOCABULARY_SIZE = 250_368
_WORKERS = 2
_MICRO_BATCH = 4


def padding_figures(inputs: Mapping[str, str]) -> Iterator[Figure]:
    """Yield the useful shares of the FLOPs of Stage I's mix of denoisers."""
    train = load(find_config("pretrain", "stage1"), TrainRecipe, ["batch=32"])
    yield _packed_share(train, inputs)
    yield _padded_share(train)


def _padded_share(train: TrainRecipe) -> Figure:
    """Return the useful share at full size if every row is padded to 570/380."""
    model_recipe = load(find_config("model", "openba-15b"), ModelRecipe)
    assert isinstance(train.data, UL2Recipe)
    sample_lengths = np.array(
        [
            lengths
            for corruption in train.data.corruptions()
            for lengths in corruption.sizes(train.data.length)
        ]
    )
    encoder_lengths = sample_lengths[:, 0].tolist()
    decoder_lengths = sample_lengths[:, 1].tolist()
    useful_flops = useful_train_flops(model_recipe, VOCABULARY_SIZE, encoder_lengths, decoder_lengths)
    row_flops = train_flops(model_recipe, VOCABULARY_SIZE, train.encoder_length, train.decoder_length)
    share = useful_flops / (len(sample_lengths) * row_flops)
    return Figure("train/useful_flops_padded", 100 * share, "%")


def _packed_share(train: TrainRecipe, inputs: Mapping[str, str]) -> Figure:
    """Return the useful share of a step's micro-batches at full length: formula FLOPs by torch's count."""
    tokenizer = Tokenizer.load(Path(inputs["tokenizer"]))
    samples = training_samples(train, Path(inputs["data"]), "stage1", tokenizer)
    batches = TrainingBatches(samples, train, tokenizer.pad, tokenizer.size)
    model_recipe = ModelRecipe(
        d_model=SHAPE.hidden_size, num_heads=SHAPE.num_heads, kv_channels=SHAPE.kv_channels,
        ffn=SHAPE.ffn_hidden_size, encoder_layers=1, decoder_layers=3,
    )  # fmt: skip
    model = OpenBAModel(model_recipe.architecture(tokenizer.size))
    micro_batches = [
        batch for rank in range(_WORKERS) for batch in batches.micro(0, rank, _WORKERS, _MICRO_BATCH)
    ]
    useful_flops = sum(
        useful_train_flops(model_recipe, tokenizer.size, *_row_lengths(batch)) for batch in micro_batches
    )
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        for batch in micro_batches:
            model.loss(batch.encoder_ids, batch.mask, batch.decoder_ids, batch.labels).backward()
    token_count = sum(batch.tokens for batch in micro_batches)
    comparison = f"{token_count:,} tokens in {len(micro_batches)} micro-batches of two workers"
    share = useful_flops / counter.get_total_flops()
    return Figure("train/useful_flops_packed", 100 * share, "%", 97, "higher", comparison)


def _row_lengths(batch: Batch) -> tuple[list[int], list[int]]:
    """Return encoder and decoder lengths of the rows, 0 for an empty row."""
    target_counts = (batch.labels != IGNORE).sum(1)
    return (batch.mask.sum(1) * (target_counts > 0)).tolist(), target_counts.tolist()


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch's counter has formulas for the GPU's attention kernels only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
