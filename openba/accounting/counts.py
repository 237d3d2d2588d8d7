"""Counts of a model's parts, by running their real code on meta tensors.

Owns which small models are run so that a block of either stack, and what is outside of the blocks, can be
distinguished; and how a rank's part of tensor parallelism is counted without a group: a block with fewer
heads, channels and words. Times are `roofline.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from openba.accounting.operations import OperationCounter, Product
from openba.model.flat_batch import FlatBatch
from openba.model.model import OpenBAModel
from openba.model.rows import Rows, first
from openba.recipes.architecture import Architecture

_META = torch.device("meta")


@dataclass(frozen=True)
class PartCount:
    """Costs of one block, or of the rest of the model, forward and backward, on one rank."""

    products: tuple[Product, ...]
    other_bytes: int
    """Bytes of elementwise operations, reductions and copies, each on its own."""
    launches: int
    saved_bytes: int
    """Tensors that the forward pass keeps for the backward pass, weights left out."""


@dataclass(frozen=True)
class ModelCount:
    """Counts of one micro-batch."""

    encoder_block: PartCount
    decoder_block: PartCount
    rest: PartCount
    """Embedding, last norms, head and loss."""


def share_of(architecture: Architecture, ranks: int) -> Architecture:
    """Return a model whose blocks are as large as a rank's part of the model's."""
    inner = architecture.ffn_inner // ranks
    return replace(
        architecture,
        num_heads=architecture.num_heads // ranks,
        vocab_size=-(-architecture.vocab_size // ranks),
        ffn_multiple=inner,
        ffn_hidden_size=-(-3 * inner // 2),
    )


@lru_cache(maxsize=64)
def count_model(
    architecture: Architecture, source_lengths: tuple[int, ...], target_lengths: tuple[int, ...]
) -> ModelCount:
    """Count one micro-batch, forward and backward, in bf16.

    Args:
        architecture: A rank's part, see `share_of`.
        source_lengths: Encoder tokens of each row.
        target_lengths: Target tokens of each row.
    """
    smallest, encoder, decoder = (
        _counted(replace(architecture, num_layers=layers, num_decoder_layers=decoder_layers), lengths)
        for layers, decoder_layers in ((1, 1), (2, 1), (1, 2))
        for lengths in [(source_lengths, target_lengths)]
    )
    encoder_block = _difference(encoder, smallest)
    decoder_block = _difference(decoder, smallest)
    rest = _difference(_difference(smallest, encoder_block), decoder_block)
    return ModelCount(encoder_block, decoder_block, rest)


def _counted(architecture: Architecture, lengths: tuple[Sequence[int], Sequence[int]]) -> PartCount:
    with _META:
        model = OpenBAModel(architecture).to(torch.bfloat16).train()
    batch = _batch(*lengths).to(_META)
    model.rotary_angles(_META)
    weights = {id(parameter) for parameter in model.parameters()}
    saved: dict[tuple[int, ...], int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Views of one tensor share its memory; meta tensors have no address, but a storage.
        storage = tensor.untyped_storage()
        if id(tensor) not in weights and (tensor._base is None or id(tensor._base) not in weights):
            saved[storage._cdata,] = storage.nbytes()
        return tensor

    with OperationCounter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(batch, gradient_scale=torch.zeros((), device=_META))
        saved_bytes = sum(saved.values())
        loss.backward()
    return PartCount(tuple(counter.products), counter.parts["other"].bytes, counter.launches, saved_bytes)


def _batch(source_lengths: Sequence[int], target_lengths: Sequence[int]) -> FlatBatch:
    """Return a batch of these lengths; its ids do not matter."""
    source_rows, target_rows = (
        Rows.ragged(first(torch.tensor(lengths), max(lengths) + 1))
        for lengths in (source_lengths, target_lengths)
    )
    targets = sum(target_lengths)
    return FlatBatch(
        encoder_ids=torch.zeros(sum(source_lengths), dtype=torch.int64),
        source_rows=source_rows,
        decoder_ids=torch.zeros(targets, dtype=torch.int64),
        target_rows=target_rows,
        labelled=torch.arange(targets),
        labels=torch.zeros(targets, dtype=torch.int64),
        label_rows=torch.zeros(targets, dtype=torch.int64),
    )


def _difference(larger: PartCount, smaller: PartCount) -> PartCount:
    remaining = list(larger.products)
    for product in smaller.products:
        remaining.remove(product)
    return PartCount(
        tuple(remaining),
        larger.other_bytes - smaller.other_bytes,
        larger.launches - smaller.launches,
        larger.saved_bytes - smaller.saved_bytes,
    )
