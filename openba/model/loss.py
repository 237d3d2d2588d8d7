"""Cross entropy of a large vocabulary without its logits.

Owns projection to the vocabulary, softmax and their gradients, a few tokens at a time. Where the words lie on
several ranks, `parallel_loss.py` brings the softmax. The full fp32 logits of 2,048 tokens over 250,368 words
are 2 GB, and plain torch holds them three times; here a slice of tokens is projected, turned into its
gradients at once, and forgotten. No operation is done twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openba.model.functions import AutogradContext
from openba.model.kernels import kernels_for
from openba.model.logit_slices import slice_tokens

IGNORE = -100
"""Label of positions that carry no loss; transformers' convention."""


class Softmax(Protocol):
    """Losses and gradients of a slice of logits, and the sum over other ranks."""

    def __call__(
        self,
        project: Callable[[], Tensor],
        labels: Tensor,
        loss_dtype: torch.dtype,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return each token's loss, d loss / d logits, and whether the label is the likeliest word.

        The second is there if `needs_gradient`, else the third. `project` gives the logits
        `[tokens, vocab]`; the caller holds no reference to them, so they can be freed early.
        """
        ...

    def add_ranks(self, hidden_gradient: Tensor) -> None:
        """Add the other ranks' part of the hidden states' gradients, in place."""
        ...


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    token_scores: Tensor | None = None,
    softmax: Softmax | None = None,
) -> Tensor:
    """Sum over tokens of -log softmax(hidden_states @ weight.T + bias)[label].

    Logits are computed in the inputs' precision, softmax and loss in fp32, the weight's gradient is summed in
    fp32. The caller divides by its number of target tokens.

    Args:
        hidden_states: `[tokens, hidden]`; may be empty, which gives 0.
        weight: `[vocab, hidden]`.
        bias: `[vocab]` or None.
        labels: int64 `[tokens]`, each in the vocabulary.
        token_scores: fp32 `[2, tokens]` to be filled: each token's loss, and without gradients whether it is
            the likeliest (1 or 0), which costs a pass over the logits.
        softmax: None: `weight` has all words.

    Returns:
        fp32 scalar (fp64 for fp64 inputs). It can be differentiated once.
    """
    # Asked here: inside, `needs_input_grad` is true under `no_grad` too, and evaluation would pay for it.
    grad_enabled = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden_states, weight, bias, labels, grad_enabled, token_scores, softmax or _FullSoftmax()
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        grad_enabled: bool,
        token_scores: Tensor | None,
        softmax: Softmax,
    ) -> Tensor:
        linear = kernels_for(hidden_states.device).linear
        loss_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        total_loss = torch.zeros((), dtype=loss_dtype, device=hidden_states.device)
        needs_gradient = grad_enabled and any(ctx.needs_input_grad)
        # Frozen parts cost a buffer that is never read; training freezes none.
        gradients = _Gradients(hidden_states, weight, bias, loss_dtype) if needs_gradient else None
        # Each slice of logits is consumed before the next exists: the peak is one slice.
        for part in slices(hidden_states.shape[0], weight.shape[0], hidden_states.device.type):
            project = partial(linear, hidden_states[part], weight, bias)
            token_losses, logit_gradient, is_likeliest = softmax(
                project, labels[part], loss_dtype, needs_gradient
            )
            total_loss += token_losses.sum()
            if token_scores is not None:
                token_scores[0, part] = token_losses
                if is_likeliest is not None:
                    token_scores[1, part] = is_likeliest
            if gradients is not None and logit_gradient is not None:
                gradients.add(part, logit_gradient, hidden_states[part], weight)
        if gradients is not None and len(hidden_states):
            softmax.add_ranks(gradients.hidden)
        ctx.gradients = gradients
        return total_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, loss_scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy: its gradients were used up by an earlier backward pass")
        return *gradients.scaled(loss_scale), None, None, None, None


class _FullSoftmax:
    """Softmax over a vocabulary that this rank holds completely."""

    def __call__(
        self,
        project: Callable[[], Tensor],
        labels: Tensor,
        loss_dtype: torch.dtype,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        log_probabilities = torch.log_softmax(project(), -1, dtype=loss_dtype)
        label_column = labels[:, None]
        token_losses = -log_probabilities.gather(1, label_column).squeeze(1)
        if not needs_gradient:
            return token_losses, None, log_probabilities.argmax(-1) == labels
        # d loss / d logits = softmax - one-hot
        logit_gradient = log_probabilities.exp_()
        minus_one = logit_gradient.new_full((), -1).expand(label_column.shape)
        logit_gradient.scatter_add_(1, label_column, minus_one)
        return token_losses, logit_gradient, None

    def add_ranks(self, hidden_gradient: Tensor) -> None:
        pass


def slices(token_count: int, vocab: int, device: str) -> list[slice]:
    """Cut tokens into slices whose logits are computed together."""
    size = slice_tokens(vocab, device)
    return [slice(start, min(start + size, token_count)) for start in range(0, token_count, size)]


class _Gradients:
    """Sums of the three gradients over the slices."""

    def __init__(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None, sum_dtype: torch.dtype
    ) -> None:
        """Make room for gradients of `linear_cross_entropy`'s inputs; `sum_dtype` is the sums' precision."""
        self.linear = kernels_for(hidden_states.device).linear
        self.dtype = weight.dtype
        self.hidden = torch.empty_like(hidden_states)
        self.weight = torch.zeros_like(weight, dtype=sum_dtype)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=sum_dtype)

    def add(self, part: slice, logit_gradient: Tensor, hidden_states: Tensor, weight: Tensor) -> None:
        """Add the tokens `part`, whose hidden states and d loss / d logits are given."""
        if self.bias is not None:
            self.bias += logit_gradient.sum(0)
        narrow_gradient = logit_gradient.to(hidden_states.dtype)
        self.hidden[part] = self.linear(narrow_gradient, weight.T)
        if narrow_gradient.dtype == self.weight.dtype:
            # In place; torch's FLOP counter, which a test asks, does not know `addmm_`.
            torch.addmm(self.weight, narrow_gradient.T, hidden_states, out=self.weight)
        else:
            self.weight += narrow_gradient.T @ hidden_states

    def scaled(self, loss_scale: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of hidden states, weight and bias, times `loss_scale`."""
        # The caller's scale comes only now: the gradients were made before it was known.
        bias_gradient = None if self.bias is None else self.bias.mul_(loss_scale).to(self.dtype)
        weight_gradient = self.weight.mul_(loss_scale).to(self.dtype)
        return self.hidden.mul_(loss_scale), weight_gradient, bias_gradient
