"""Tensor parallelism: each rank of a group holds and computes a part of every large weight (paper: 4 ranks).

Owns how a weight is cut and put together again, the layers that compute with a part, and their collectives.
Attention is cut by heads, SwiGLU by channels, embedding and head by words of the vocabulary; norms and output
biases are whole on every rank. Each attention or feed-forward layer costs one all-reduce forward and one
backward. Ranks of a group see the same batches and draw the same dropout for what is whole on all of them,
but each its own within its heads, so dropout is another one for another number of ranks. Which ranks form a
group is `openba.train.groups`'; the loss is `parallel_loss.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from openba.errors import UserError
from openba.model.functions import linear
from openba.model.layers import MLP, CrossAttention, SelfAttention
from openba.model.loss import linear_cross_entropy
from openba.model.model import OpenBAModel
from openba.model.parallel_loss import TensorGroup, VocabularySoftmax
from openba.model.seq2seq import begin
from openba.recipes.architecture import Architecture

_SPLIT = "openba_split"


@dataclass(frozen=True)
class Split:
    """Which dimension of a weight is cut into as many pieces as there are ranks."""

    dim: int
    parts: int = 1
    """Blocks along `dim` that are cut one by one: `fc_in` holds the gate, then up."""

    def take(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """The piece of one rank, a copy."""
        blocks = whole.chunk(self.parts, self.dim)
        return torch.cat([block.chunk(size, self.dim)[rank] for block in blocks], self.dim)

    def join(self, pieces: list[Tensor]) -> Tensor:
        """The whole from the pieces of all ranks in order."""
        blocks = zip(*(piece.chunk(self.parts, self.dim) for piece in pieces), strict=True)
        return torch.cat([torch.cat(block, self.dim) for block in blocks], self.dim)


def split_of(parameter: nn.Parameter) -> Split | None:
    """How a parameter is cut; None: it is whole on every rank."""
    return getattr(parameter, _SPLIT, None)


def gathered(parameter: nn.Parameter, piece: Tensor, group: TensorGroup) -> Tensor:
    """The whole of which `piece`, of the shape of this rank's `parameter`, is this rank's part.

    All ranks of the group call it together.
    """
    split = split_of(parameter)
    if split is None:
        return piece
    pieces = [torch.empty_like(piece) for _ in range(group.size)]
    dist.all_gather(pieces, piece.contiguous(), group=group.handle)
    return split.join(pieces)


def taken(parameter: nn.Parameter, whole: Tensor, group: TensorGroup) -> Tensor:
    """This rank's part of a whole."""
    split = split_of(parameter)
    return whole if split is None else split.take(whole, group.rank, group.size)


def make_part(
    architecture: Architecture, group: TensorGroup, weights: Mapping[str, Tensor] | None = None
) -> OpenBAModel:
    """This rank's part of a model in fp32 host memory; its forward pass gives the whole model's loss.

    Never more than one whole weight is in memory besides the part: eight ranks of a node would hold 470 GB of
    the 15B model.

    Args:
        architecture: The whole model's.
        group: The ranks that share it.
        weights: The whole model's, as `files.fitting` gives them; None draws initial values, which are the
            same as `OpenBAModel`'s at the same state of the common generator, whatever the group.

    Raises:
        UserError: heads, feed-forward channels or words cannot be shared evenly.
    """
    with torch.device("meta"):
        whole, part = OpenBAModel(architecture), OpenBAModel(architecture)
    _split(part, group)
    splits = {name: split_of(parameter) for name, parameter in part.named_parameters()}
    part.to_empty(device="cpu")  # makes new parameters, which are not marked
    own = dict(part.named_parameters())
    for name, split in splits.items():
        if split is not None:
            _mark(own[name], split)
    with torch.no_grad():
        for path, module in whole.named_modules():
            names = [name for name, _ in module.named_parameters(path, recurse=False)]
            if weights is None:
                begin(module, architecture.initializer_range, torch.device("cpu"))
            values = dict(module.named_parameters(path, recurse=False)) if weights is None else weights
            for name in names:
                own[name].copy_(taken(own[name], values[name], group))
            module.to_empty(device="meta", recurse=False)
    return part


def _split(model: OpenBAModel, group: TensorGroup) -> None:
    """Leave of a whole model this rank's part."""
    if group.size == 1:
        return
    _check(model.architecture, group.size)
    model.share_heads(group.rank)
    for module in list(model.modules()):
        if isinstance(module, MLP):
            _put(module, fc_in=ColumnLinear(module.fc_in, group, Split(0, 2)))
            _put(module, fc_out=RowLinear(module.fc_out, group))
        elif isinstance(module, SelfAttention | CrossAttention):
            module.num_heads //= group.size
            _put(module, o=RowLinear(module.o, group))
            if isinstance(module, SelfAttention):
                _put(module, qkv=ColumnLinear(module.qkv, group, Split(0)))
            else:
                _put(module, q=ColumnLinear(module.q, group, Split(0)))
                _put(module, kv=ColumnLinear(module.kv, group, Split(0), sums_gradient=False))
    # Keys and values of all decoder blocks come from here: one sum of gradients instead of one a block.
    model.encoder.register_forward_hook(lambda module, inputs, output: _Spread.apply(output, group))
    _put(model, shared_embedding=VocabularyEmbedding(model.shared_embedding, group))
    for name, whole in list(model.lm_head.named_parameters()):
        setattr(model.lm_head, name, _part(whole, Split(0), group))
    model.cross_entropy = partial(linear_cross_entropy, softmax=VocabularySoftmax(group))


class ColumnLinear(nn.Module):
    """Some of a linear layer's outputs, from its whole input."""

    def __init__(
        self, whole: nn.Linear, group: TensorGroup, split: Split, sums_gradient: bool = True
    ) -> None:
        super().__init__()
        self.weight = _part(whole.weight, split, group)
        self.bias = None if whole.bias is None else _part(whole.bias, split, group)
        self.group, self.sums_gradient = group, sums_gradient

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]`, the same on all ranks, to `[..., outputs / ranks]`."""
        if self.sums_gradient:
            x = _Spread.apply(x, self.group)
        return linear(x, self.weight, self.bias)


class RowLinear(nn.Module):
    """A linear layer's outputs from some of its inputs, summed over the ranks; the bias is added once."""

    def __init__(self, whole: nn.Linear, group: TensorGroup) -> None:
        super().__init__()
        self.weight, self.bias, self.group = _part(whole.weight, Split(1), group), whole.bias, group

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs / ranks]` to `[..., outputs]`, the same on all ranks."""
        out = _Sum.apply(linear(x, self.weight), self.group)
        return out if self.bias is None else out + self.bias


class VocabularyEmbedding(nn.Module):
    """Some rows of the embedding; a word of another rank is zero here, and the sum over ranks is its row."""

    def __init__(self, whole: nn.Embedding, group: TensorGroup) -> None:
        super().__init__()
        self.weight, self.group = _part(whole.weight, Split(0), group), group

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `[tokens]` of the whole vocabulary to `[tokens, hidden]`, the same on all ranks."""
        rows = self.weight.shape[0]
        own = ids - self.group.rank * rows
        foreign = (own < 0) | (own >= rows)
        found = F.embedding(own.masked_fill(foreign, 0), self.weight)
        return _Sum.apply(found.masked_fill(foreign[:, None], 0), self.group)


class _Spread(torch.autograd.Function):
    """The same tensor for all ranks' parts of a layer; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: TensorGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group.handle)
        return grad, None


class _Sum(torch.autograd.Function):
    """The sum of all ranks' parts; each part's gradient is the sum's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: TensorGroup) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)  # recomputation may hold on to `x`
        dist.all_reduce(out, group=group.handle)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _put(parent: nn.Module, **children: nn.Module) -> None:
    """In the place of a child of another class."""
    for name, child in children.items():
        setattr(parent, name, child)


def _part(whole: Tensor, split: Split, group: TensorGroup) -> nn.Parameter:
    return _mark(nn.Parameter(split.take(whole.data, group.rank, group.size)), split)


def _mark(parameter: nn.Parameter, split: Split) -> nn.Parameter:
    setattr(parameter, _SPLIT, split)
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]  # DeepSpeed's norm asks for it
    return parameter


def _check(shape: Architecture, size: int) -> None:
    sizes = {"heads": shape.num_heads, "feed-forward channels": shape.ffn_inner, "words": shape.vocab_size}
    for what, count in sizes.items():
        if count % size:
            raise UserError(
                f"runtime.tensor_parallel: {size} ranks cannot share {count} {what} of the model evenly; "
                "take a divisor"
            )
