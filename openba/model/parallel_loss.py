"""Cross entropy over a vocabulary whose words lie on several ranks; no rank ever has all logits.

Owns the softmax of tensor parallelism, which `loss.py` calls for a few tokens at a time. Three numbers a
token go between the ranks (largest logit, sum of exponentials, the label's logit), and the hidden states'
gradients at the end. Everything else of tensor parallelism is `parallel.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class TensorGroup:
    """The ranks that share each weight, and which of them this one is."""

    handle: dist.ProcessGroup | None
    """None: this rank alone."""
    rank: int
    size: int


class VocabularySoftmax:
    """For `linear_cross_entropy` with an equal share of the words on each rank, in order.

    `weight` and `bias` are then this rank's words. Hidden states and labels (of the whole vocabulary) are the
    same on all ranks of the group, and so is the loss. All ranks call it together.
    """

    def __init__(self, group: TensorGroup) -> None:
        self.group = group

    def __call__(
        self, project: Callable[[], Tensor], labels: Tensor, precise: torch.dtype, wanted: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `Softmax`; a label is the likeliest if no other word is likelier."""
        logits, handle = project().to(precise), self.group.handle
        own = labels - self.group.rank * logits.shape[1]  # counted from this rank's first word on
        largest = logits.amax(-1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=handle)
        logits -= largest[:, None]
        foreign = (own < 0) | (own >= logits.shape[1])
        place = own.masked_fill(foreign, 0)[:, None]
        label = logits.gather(1, place).squeeze(1).masked_fill(foreign, 0)
        exponentials = logits.exp_()
        sums = torch.stack([exponentials.sum(-1), label])
        dist.all_reduce(sums, group=handle)
        losses = sums[0].log() - sums[1]
        if not wanted:
            return losses, None, sums[1] == 0
        slope = exponentials.div_(sums[0, :, None])
        slope.scatter_add_(1, place, foreign.to(slope.dtype)[:, None] - 1)
        return losses, slope, None

    def add_ranks(self, hidden_gradient: Tensor) -> None:
        """Each rank's words give a part of it."""
        dist.all_reduce(hidden_gradient, group=self.group.handle)
