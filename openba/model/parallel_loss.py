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
    """Ranks that share each weight, and this rank's number among them."""

    handle: dist.ProcessGroup | None
    """None: this rank alone."""
    rank: int
    size: int


class VocabularySoftmax:
    """Softmax of `linear_cross_entropy` with an equal share of the words on each rank, in order.

    `weight` and `bias` are then this rank's words. Hidden states and labels (of the whole vocabulary) are the
    same on all ranks of the group, and so is the loss. All ranks call it together.
    """

    def __init__(self, group: TensorGroup) -> None:
        self.group = group

    def __call__(
        self,
        project: Callable[[], Tensor],
        labels: Tensor,
        loss_dtype: torch.dtype,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `Softmax`; a label is the likeliest if no other word is likelier."""
        logits = project().to(loss_dtype)
        group_handle = self.group.handle
        local_vocab = logits.shape[1]
        local_labels = labels - self.group.rank * local_vocab  # counted from this rank's first word on
        is_foreign = (local_labels < 0) | (local_labels >= local_vocab)
        label_column = local_labels.masked_fill(is_foreign, 0)[:, None]
        # The highest logit of all ranks, or exponentials of different ranks could not be added.
        highest_logit = logits.amax(-1)
        dist.all_reduce(highest_logit, dist.ReduceOp.MAX, group=group_handle)
        logits -= highest_logit[:, None]
        label_logit = logits.gather(1, label_column).squeeze(1).masked_fill(is_foreign, 0)
        exponentials = logits.exp_()
        exp_sum_and_label = torch.stack([exponentials.sum(-1), label_logit])
        dist.all_reduce(exp_sum_and_label, group=group_handle)
        exp_sum, label_logit = exp_sum_and_label
        token_losses = exp_sum.log() - label_logit
        if not needs_gradient:
            return token_losses, None, label_logit == 0
        logit_gradient = exponentials.div_(exp_sum[:, None])
        # Minus one at the label, on the rank that has it.
        minus_one = is_foreign.to(logit_gradient.dtype)[:, None] - 1
        logit_gradient.scatter_add_(1, label_column, minus_one)
        return token_losses, logit_gradient, None

    def add_ranks(self, hidden_gradient: Tensor) -> None:
        """Sum the parts that each rank's words give, in place."""
        dist.all_reduce(hidden_gradient, group=self.group.handle)
