"""Cross entropy of a large vocabulary without its logits.

Owns projection to the vocabulary, softmax and their gradients, a few tokens at a time. Where the words lie on
several ranks, `parallel_loss.py` brings the softmax. The full
fp32 logits of 2,048 tokens over 250,368 words are 2 GB, and plain torch holds them three times; here a slice
of tokens is projected, turned into its gradients at once, and forgotten. No operation is done twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .functions import linear

SLICE_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}
"""Logits held at a time. CPU: 16 MB of fp32, which stays in the last-level cache."""
SLICE_TOKENS = 64
"""Fewer tokens at a time make a slow matrix product."""


class Softmax(Protocol):
    """What a slice of logits gives, and what other ranks have to add."""

    def __call__(
        self, project: Callable[[], Tensor], labels: Tensor, precise: torch.dtype, wanted: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Each token's loss; d loss / d logits if `wanted`, else whether the label is the likeliest word.

        `project` gives the logits `[tokens, vocab]`; nobody else holds them, so they can be forgotten early.
        """
        ...

    def add_ranks(self, hidden_gradient: Tensor) -> None:
        """Add the other ranks' part of the hidden states' gradients, in place."""
        ...


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    each: Tensor | None = None,
    softmax: Softmax | None = None,
) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight.T + bias)[label].

    Logits are computed in the inputs' precision, softmax and loss in fp32, the weight's gradient is summed in
    fp32. The caller divides by its number of target tokens.

    Args:
        hidden: `[tokens, hidden]`; may be empty, which gives 0.
        weight: `[vocab, hidden]`.
        bias: `[vocab]` or None.
        labels: int64 `[tokens]`, each in the vocabulary.
        each: fp32 `[2, tokens]` to be filled: each token's loss, and without gradients whether it is the
            likeliest (1 or 0), which costs a pass over the logits.
        softmax: None: `weight` has all words.

    Returns:
        fp32 scalar (fp64 for fp64 inputs). It can be differentiated once.
    """
    # Asked here: inside, `needs_input_grad` is true under `no_grad` too, and evaluation would pay for it.
    enabled = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, enabled, each, softmax or _Whole())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        enabled: bool,
        each: Tensor | None,
        softmax: Softmax,
    ) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=precise, device=hidden.device)
        needs = enabled and any(ctx.needs_input_grad)
        # Frozen parts cost a buffer nobody reads; training freezes none.
        grads = _Gradients(hidden, weight, bias, precise) if needs else None
        for part in slices(hidden.shape[0], weight.shape[0], hidden.device.type):
            project = partial(linear, hidden[part], weight, bias)
            losses, slope, likeliest = softmax(project, labels[part], precise, needs)
            total += losses.sum()
            if each is not None:
                each[0, part] = losses
                if likeliest is not None:
                    each[1, part] = likeliest
            if grads is not None and slope is not None:
                grads.add(part, slope, hidden[part], weight)
        if grads is not None and len(hidden):
            softmax.add_ranks(grads.hidden)
        ctx.grads = grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("linear_cross_entropy: its gradients were used up by an earlier backward pass")
        return *grads.scaled(scale), None, None, None, None


class _Whole:
    """All words are here."""

    def __call__(
        self, project: Callable[[], Tensor], labels: Tensor, precise: torch.dtype, wanted: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        log_probabilities = torch.log_softmax(project(), -1, dtype=precise)
        place = labels[:, None]
        losses = -log_probabilities.gather(1, place).squeeze(1)
        if not wanted:
            return losses, None, log_probabilities.argmax(-1) == labels
        # d loss / d logits = softmax - one-hot
        slope = log_probabilities.exp_()
        slope.scatter_add_(1, place, slope.new_full((), -1).expand(place.shape))
        return losses, slope, None

    def add_ranks(self, hidden_gradient: Tensor) -> None:
        pass


def slices(tokens: int, vocab: int, device: str) -> list[slice]:
    """Tokens whose logits are held together."""
    size = max(SLICE_TOKENS, SLICE_ELEMENTS.get(device, SLICE_ELEMENTS["cuda"]) // vocab)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


class _Gradients:
    """Sums of the three gradients while the slices go by."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, precise: torch.dtype) -> None:
        """Args: as `linear_cross_entropy`'s; `precise` is the sums' precision."""
        self.dtype = weight.dtype
        self.hidden = torch.empty_like(hidden)
        self.weight = torch.zeros_like(weight, dtype=precise)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=precise)

    def add(self, part: slice, slope: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Of tokens `part`: `slope` is d loss / d logits, `hidden` theirs."""
        if self.bias is not None:
            self.bias += slope.sum(0)
        narrow = slope.to(hidden.dtype)
        self.hidden[part] = linear(narrow, weight.T)
        if narrow.dtype == self.weight.dtype:
            # In place; torch's FLOP counter, which a test asks, does not know `addmm_`.
            torch.addmm(self.weight, narrow.T, hidden, out=self.weight)
        else:
            self.weight += narrow.T @ hidden

    def scaled(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of hidden, weight and bias, times `scale`."""
        bias = None if self.bias is None else self.bias.mul_(scale).to(self.dtype)
        return self.hidden.mul_(scale), self.weight.mul_(scale).to(self.dtype), bias
