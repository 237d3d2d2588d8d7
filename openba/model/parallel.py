"""Tensor parallelism: each rank of a group holds and computes a part of every large weight (paper: 4 ranks).

Owns how a weight is split and joined again, the layers that compute with a part, and their collectives.
Attention is split by heads, SwiGLU by channels, embedding and head by words of the vocabulary; norms and
output biases are replicated. Each attention or feed-forward layer costs one all-reduce forward and one
backward. Ranks of a group see the same batches and draw the same dropout for replicated tensors, but each its
own within its heads, so results with dropout depend on the number of ranks. Which ranks form a group is
`openba.train.groups`'; the loss is `parallel_loss.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from openba.errors import UserError
from openba.model.functions import AutogradContext
from openba.model.kernels import kernels_for
from openba.model.layers import MLP, CrossAttention, SelfAttention
from openba.model.loss import linear_cross_entropy
from openba.model.model import OpenBAModel
from openba.model.parallel_loss import TensorGroup, VocabularySoftmax
from openba.model.seq2seq import begin
from openba.recipes.architecture import Architecture

_SPLIT = "openba_split"


@dataclass(frozen=True)
class Split:
    """Dimension of a weight that is split into as many pieces as there are ranks."""

    dim: int
    block_count: int = 1
    """Blocks along `dim` that are split one by one: `fc_in` holds the gate, then up."""

    def take(self, full_weight: Tensor, rank: int, size: int) -> Tensor:
        """Return a copy of one rank's piece."""
        blocks = full_weight.chunk(self.block_count, self.dim)
        return torch.cat([block.chunk(size, self.dim)[rank] for block in blocks], self.dim)

    def join(self, rank_pieces: list[Tensor]) -> Tensor:
        """Return the full weight from the pieces of all ranks in order."""
        blocks = zip(*(piece.chunk(self.block_count, self.dim) for piece in rank_pieces), strict=True)
        return torch.cat([torch.cat(block, self.dim) for block in blocks], self.dim)


def split_of(parameter: nn.Parameter) -> Split | None:
    """Return how a parameter is split; None: it is replicated."""
    return getattr(parameter, _SPLIT, None)


def gathered(parameter: nn.Parameter, piece: Tensor, group: TensorGroup) -> Tensor:
    """Return the full tensor of which `piece`, of the shape of this rank's `parameter`, is a part.

    All ranks of the group call it together.
    """
    split = split_of(parameter)
    if split is None:
        return piece
    rank_pieces = [torch.empty_like(piece) for _ in range(group.size)]
    dist.all_gather(rank_pieces, piece.contiguous(), group=group.handle)
    return split.join(rank_pieces)


def taken(parameter: nn.Parameter, full_weight: Tensor, group: TensorGroup) -> Tensor:
    """Return this rank's part of a full tensor."""
    split = split_of(parameter)
    return full_weight if split is None else split.take(full_weight, group.rank, group.size)


def make_part(
    architecture: Architecture, group: TensorGroup, weights: Mapping[str, Tensor] | None = None
) -> OpenBAModel:
    """Make this rank's part of a model in fp32 host memory; its forward pass gives the full model's loss.

    At most one full weight is in memory besides the part: eight ranks of a node would hold 470 GB of the 15B
    model.

    Args:
        architecture: The full model's.
        group: The ranks that share it.
        weights: The full model's, as `files.fitting` gives them; None draws initial values, which are the
            same as `OpenBAModel`'s at the same state of the common generator, whatever the group.

    Raises:
        UserError: heads, feed-forward channels or words cannot be shared evenly.
    """
    with torch.device("meta"):
        full_model = OpenBAModel(architecture)
        local_model = OpenBAModel(architecture)
    _split(local_model, group)
    splits = {name: split_of(parameter) for name, parameter in local_model.named_parameters()}
    local_model.to_empty(device="cpu")  # makes new parameters, which are not marked
    local_parameters = dict(local_model.named_parameters())
    for name, split in splits.items():
        if split is not None:
            _mark(local_parameters[name], split)
    with torch.no_grad():
        # Module by module, each freed after it is copied: see the docstring.
        for path, module in full_model.named_modules():
            parameter_names = [name for name, _ in module.named_parameters(path, recurse=False)]
            if weights is None:
                begin(module, architecture.initializer_range, torch.device("cpu"))
            values = dict(module.named_parameters(path, recurse=False)) if weights is None else weights
            for name in parameter_names:
                parameter = local_parameters[name]
                parameter.copy_(taken(parameter, values[name], group))
            module.to_empty(device="meta", recurse=False)
    return local_model


def _split(model: OpenBAModel, group: TensorGroup) -> None:
    """Reduce a full model to this rank's part."""
    if group.size == 1:
        return
    _check(model.architecture, group.size)
    model.share_heads(group.rank)
    # A list: children are replaced on the way.
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
    # A hook, so that `Encoder` itself need not know of ranks.
    model.encoder.register_forward_hook(lambda module, inputs, output: _Spread.apply(output, group))
    _put(model, shared_embedding=VocabularyEmbedding(model.shared_embedding, group))
    for name, full_weight in list(model.lm_head.named_parameters()):
        setattr(model.lm_head, name, _part(full_weight, Split(0), group))
    model.cross_entropy = partial(linear_cross_entropy, softmax=VocabularySoftmax(group))


class ColumnLinear(nn.Module):
    """Linear layer that computes this rank's share of the outputs from the full input."""

    def __init__(
        self, full_layer: nn.Linear, group: TensorGroup, split: Split, sums_gradient: bool = True
    ) -> None:
        super().__init__()
        self.weight = _part(full_layer.weight, split, group)
        self.bias = None if full_layer.bias is None else _part(full_layer.bias, split, group)
        self.group = group
        self.sums_gradient = sums_gradient

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., inputs]`, the same on all ranks, to `[..., outputs / ranks]`."""
        # The input is replicated, so its gradient is the sum of what each rank's outputs send back.
        if self.sums_gradient:
            hidden_states = _Spread.apply(hidden_states, self.group)
        return kernels_for(hidden_states.device).linear(hidden_states, self.weight, self.bias)


class RowLinear(nn.Module):
    """A linear layer's outputs from some of its inputs, summed over the ranks; the bias is added once."""

    def __init__(self, full_layer: nn.Linear, group: TensorGroup) -> None:
        super().__init__()
        self.weight = _part(full_layer.weight, Split(1), group)
        self.bias = full_layer.bias
        self.group = group

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., inputs / ranks]` to `[..., outputs]`, the same on all ranks."""
        local_output = kernels_for(hidden_states.device).linear(hidden_states, self.weight)
        summed_output = _Sum.apply(local_output, self.group)
        return summed_output if self.bias is None else summed_output + self.bias


class VocabularyEmbedding(nn.Module):
    """This rank's rows of the embedding; other ranks' words are zero, and the sum over ranks is the row."""

    def __init__(self, full_embedding: nn.Embedding, group: TensorGroup) -> None:
        super().__init__()
        self.weight = _part(full_embedding.weight, Split(0), group)
        self.group = group

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `[tokens]` of the full vocabulary to `[tokens, hidden]`, the same on all ranks."""
        local_vocab = self.weight.shape[0]
        local_ids = ids - self.group.rank * local_vocab
        is_foreign = (local_ids < 0) | (local_ids >= local_vocab)
        # Row 0 stands in for foreign words and is masked out again: a lookup of all ids in one call.
        local_rows = F.embedding(local_ids.masked_fill(is_foreign, 0), self.weight)
        return _Sum.apply(local_rows.masked_fill(is_foreign[:, None], 0), self.group)


class _Spread(torch.autograd.Function):
    """The same tensor for all ranks' parts of a layer; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: AutogradContext, hidden_states: Tensor, group: TensorGroup) -> Tensor:
        ctx.group = group
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx: AutogradContext, output_gradient: Tensor) -> tuple[Tensor, None]:
        summed_gradient = output_gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_gradient, group=ctx.group.handle)
        return summed_gradient, None


class _Sum(torch.autograd.Function):
    """The sum of all ranks' parts; each part's gradient is the sum's."""

    @staticmethod
    def forward(ctx: AutogradContext, local_part: Tensor, group: TensorGroup) -> Tensor:
        # A copy: recomputation may still hold the part.
        total = local_part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group.handle)
        return total

    @staticmethod
    def backward(ctx: AutogradContext, output_gradient: Tensor) -> tuple[Tensor, None]:
        return output_gradient, None


def _put(parent: nn.Module, **children: nn.Module) -> None:
    """Replace children by some of another class."""
    for name, child in children.items():
        setattr(parent, name, child)


def _part(full_weight: Tensor, split: Split, group: TensorGroup) -> nn.Parameter:
    return _mark(nn.Parameter(split.take(full_weight.data, group.rank, group.size)), split)


def _mark(parameter: nn.Parameter, split: Split) -> nn.Parameter:
    setattr(parameter, _SPLIT, split)
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]  # DeepSpeed's norm asks for it
    return parameter


def _check(shape: Architecture, size: int) -> None:
    unit_counts = {
        "heads": shape.num_heads,
        "feed-forward channels": shape.ffn_inner,
        "words": shape.vocab_size,
    }
    for unit_name, unit_count in unit_counts.items():
        if unit_count % size:
            raise UserError(
                f"runtime.tensor_parallel: {size} ranks cannot share {unit_count} {unit_name} of the model "
                "evenly; take a divisor"
            )
