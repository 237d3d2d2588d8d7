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
    gradient_scale: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of -log softmax(hidden_states @ weight.T + bias)[label].

    Logits are computed in the inputs' precision, softmax and loss in fp32, the weight's gradient is summed in
    fp32. The caller divides by its number of target tokens.

    Gradients of logits are made in the forward pass, before the caller's factor on the loss is known. In half
    precision what is narrowed then should have the size that it will have: fp16 flushes probabilities below
    3e-8 to zero, and loss scaling comes too late for them.

    Args:
        hidden_states: `[tokens, hidden]`; may be empty, which gives 0.
        weight: `[vocab, hidden]`.
        bias: `[vocab]` or None.
        labels: int64 `[tokens]`, each in the vocabulary.
        token_scores: fp32 `[2, tokens]` to be filled: each token's loss, and without gradients whether it is
            the likeliest (1 or 0), which costs a pass over the logits.
        softmax: None: `weight` has all words.
        gradient_scale: Factor by which the caller will multiply the loss, the loss scale included, a scalar
            on the device; None: unknown. It does not change the gradients but their precision.

    Returns:
        fp32 scalar (fp64 for fp64 inputs). It can be differentiated once.
    """
    # Asked here: inside, `needs_input_grad` is true under `no_grad` too, and evaluation would pay for it.
    grad_enabled = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden_states, weight, bias, labels, grad_enabled, token_scores, softmax or _FullSoftmax(),
        gradient_scale,
    )  # fmt: skip


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
        gradient_scale: Tensor | None,
    ) -> Tensor:
        linear = kernels_for(hidden_states.device).linear
        loss_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        total_loss = torch.zeros((), dtype=loss_dtype, device=hidden_states.device)
        needs_gradient = grad_enabled and any(ctx.needs_input_grad)
        parts = slices(hidden_states.shape[0], weight.shape[0], hidden_states.device.type)
        gradients = None
        if needs_gradient:
            # A frozen head, as under an adapter, gets no gradient: 4.1 GB in fp32 for the 15B model's.
            _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
            gradients = _Gradients(
                hidden_states, weight, bias, loss_dtype, gradient_scale, len(parts),
                wants_weight=wants_weight, wants_bias=wants_bias,
            )  # fmt: skip
        # Each slice of logits is consumed before the next exists: the peak is one slice.
        for part in parts:
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
        return *gradients.scaled(loss_scale), None, None, None, None, None


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
        self,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sum_dtype: torch.dtype,
        scale: Tensor | None,
        slice_count: int,
        *,
        wants_weight: bool,
        wants_bias: bool,
    ) -> None:
        """Make room for gradients of `linear_cross_entropy`'s inputs; `sum_dtype` is the sums' precision."""
        self.kernels = kernels_for(hidden_states.device)
        self.dtype = weight.dtype
        self.scale = scale
        self.hidden = torch.empty_like(hidden_states)
        self.bias = torch.zeros_like(bias, dtype=sum_dtype) if bias is not None and wants_bias else None
        # A single slice in half precision needs no sum in fp32: its product accumulates there itself. It
        # waits for the backward pass, where the loss's factor goes into the small operand. The 15B model's
        # weight then costs no byte but the product's own; summed and scaled in fp32, 26 bytes an element.
        self.waits = wants_weight and slice_count == 1 and weight.dtype != sum_dtype
        self.waiting_product: tuple[Tensor, Tensor] | None = None
        is_summed = wants_weight and not self.waits
        self.weight = torch.zeros_like(weight, dtype=sum_dtype) if is_summed else None

    def add(self, part: slice, logit_gradient: Tensor, hidden_states: Tensor, weight: Tensor) -> None:
        """Add the tokens `part`, whose hidden states and d loss / d logits are given."""
        scaled_gradient = self._scaled(logit_gradient)
        if self.bias is not None:
            # The narrow one: to read the wide one again would cost twice the bytes.
            self.bias += scaled_gradient.sum(0, dtype=self.bias.dtype)
        self.hidden[part] = self.kernels.linear(scaled_gradient, weight.T)
        if self.waits:
            self.waiting_product = scaled_gradient, hidden_states
        elif self.weight is not None:
            self.kernels.add_product(self.weight, scaled_gradient.T, hidden_states)

    def scaled(self, loss_scale: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the gradients of hidden states, weight and bias, times `loss_scale`; of frozen ones None."""
        # What the gradients do not have yet of the caller's factor: 1 in training in half precision, NaN for
        # a step that is to be dropped.
        rest = loss_scale if self.scale is None else loss_scale / self.scale
        bias_gradient = None if self.bias is None else self.bias.mul_(rest).to(self.dtype)
        weight_gradient = None
        if self.waiting_product is not None:
            scaled_gradient, hidden_states = self.waiting_product
            weight_gradient = scaled_gradient.T @ (hidden_states * rest)
        elif self.weight is not None:
            weight_gradient = self._narrowed(self.weight, rest)
        return self.hidden.mul_(rest), weight_gradient, bias_gradient

    def _scaled(self, logit_gradient: Tensor) -> Tensor:
        """Return the scaled gradient of logits, in the weight's precision; overwrites `logit_gradient`."""
        if logit_gradient.dtype == self.dtype and self.scale is None:
            return logit_gradient
        return self._narrowed(logit_gradient, 1.0 if self.scale is None else self.scale)

    def _narrowed(self, wide: Tensor, factor: Tensor | float) -> Tensor:
        """`wide` times a factor in the weight's precision, in one pass; `wide` is used up."""
        is_narrow = wide.dtype == self.dtype
        out = wide if is_narrow else torch.empty_like(wide, dtype=self.dtype)
        return torch.mul(wide, factor, out=out)
