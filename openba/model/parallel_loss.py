"""Cross entropy over a vocabulary whose words lie on several ranks; no rank ever has all logits.

Owns the loss of tensor parallelism: as `loss.py`, a few tokens at a time. Three numbers a token go between
the ranks (largest logit, sum of exponentials, the label's logit), and the hidden states' gradients at the
end. Everything else of tensor parallelism is `parallel.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from openba.model.loss import Gradients, slices


@dataclass(frozen=True)
class TensorGroup:
    """The ranks that share each weight, and which of them this one is."""

    handle: dist.ProcessGroup | None
    """None: this rank alone."""
    rank: int
    size: int


def vocabulary_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    each: Tensor | None = None,
    *,
    group: TensorGroup,
) -> Tensor:
    """`linear_cross_entropy` of the whole vocabulary from each rank's equal share of it, in order.

    Args:
        hidden: `[tokens, hidden]`, the same on all ranks of the group; so are `labels`.
        weight: `[vocab / ranks, hidden]`, this rank's words.
        bias: `[vocab / ranks]` or None.
        labels: int64 `[tokens]`, of the whole vocabulary.
        each: fp32 `[2, tokens]` to be filled: each token's loss, and whether no other word is likelier.
        group: the ranks; all call it together.

    Returns:
        fp32 scalar (fp64 for fp64 inputs), the same on all ranks. It can be differentiated once.
    """
    return _VocabularyCrossEntropy.apply(hidden, weight, bias, labels, torch.is_grad_enabled(), each, group)


class _VocabularyCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        enabled: bool,
        each: Tensor | None,
        group: TensorGroup,
    ) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=precise, device=hidden.device)
        grads = Gradients(hidden, weight, bias, precise) if enabled and any(ctx.needs_input_grad) else None
        own = labels - group.rank * weight.shape[0]
        for part in slices(hidden.shape[0], weight.shape[0], hidden.device.type):
            logits = torch.nn.functional.linear(hidden[part], weight, bias).to(precise)
            losses, slope, likeliest = _softmax(logits, own[part], group)
            total += losses.sum()
            if each is not None:
                each[0, part], each[1, part] = losses, likeliest
            if grads is not None:
                grads.add(part, slope, hidden[part], weight)
        if grads is not None and len(hidden):
            dist.all_reduce(grads.hidden, group=group.handle)
        ctx.grads = grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("vocabulary_cross_entropy: its gradients were used up by an earlier pass")
        return *grads.scaled(scale), None, None, None, None


def _softmax(logits: Tensor, own: Tensor, group: TensorGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each token, softmax minus one-hot in `logits`' place, and whether the label is likeliest.

    `own` counts labels from this rank's first word on.
    """
    largest = logits.amax(-1)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group.handle)
    logits -= largest[:, None]
    foreign = (own < 0) | (own >= logits.shape[1])
    place = own.masked_fill(foreign, 0)[:, None]
    label = logits.gather(1, place).squeeze(1).masked_fill(foreign, 0)
    exponentials = logits.exp_()
    sums = torch.stack([exponentials.sum(-1), label])
    dist.all_reduce(sums, group=group.handle)
    slope = exponentials.div_(sums[0, :, None])
    slope.scatter_add_(1, place, foreign.to(slope.dtype)[:, None] - 1)
    return sums[0].log() - sums[1], slope, sums[1] == 0
