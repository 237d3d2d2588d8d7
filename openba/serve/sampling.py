"""The next token of each row: greedy or drawn, after the row's own biases; log-probabilities on request.

Owns the arithmetic on logits. Every row is computed by itself, so no parameter of one request, and no logit
of one row, changes another row's token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LOWEST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken: a logit 1e-3 lower would be drawn once in e^100 times."""


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen."""

    temperature: float = 0.0
    """0: the likeliest token, always."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability; at least one."""
    seed: int | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to what is added to its logit."""
    top_logprobs: int | None = None
    """How many alternatives of each token to record; None: no log-probabilities at all."""

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return the row's own random numbers; None where nothing is drawn."""
        if self.temperature < LOWEST_TEMPERATURE:
            return None
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


GREEDY = Sampling()


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position, in nats, of the model's distribution before bias and temperature."""

    chosen: float
    top: list[tuple[int, float]]
    """The likeliest tokens, the likeliest first."""


@torch.inference_mode()
def choose(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> list[int | None]:
    """Return the next token of each row of fp32 `[rows, vocab]`; None for a row whose logits are not finite.

    A NaN, an infinite logit, or none that is finite makes a row fail; single logits of minus infinity do not.
    """
    for row, sampling in enumerate(samplings):
        if sampling.bias:
            logits[row, list(sampling.bias)] += torch.tensor(
                list(sampling.bias.values()), device=logits.device
            )
    highest, likeliest = logits.max(-1)  # of a row with a NaN the highest is NaN
    tokens: list[int | None] = likeliest.tolist()
    for row, (value, generator) in enumerate(zip(highest.tolist(), generators, strict=True)):
        if not math.isfinite(value):
            tokens[row] = None
        elif generator is not None:
            tokens[row] = _draw(logits[row], value, samplings[row], generator)
    return tokens


def _draw(logits: Tensor, highest: float, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one token of `[vocab]` logits."""
    # In fp64 and from differences to the highest: no temperature overflows, and top_p = 1e-60 is not 0.
    probabilities = torch.softmax((logits.double() - highest) / sampling.temperature, -1)
    if sampling.top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ordered, order = probabilities.sort(descending=True)
    beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
    beyond[0] = False
    ordered[beyond] = 0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])


@torch.inference_mode()
def token_logprobs(logits: Tensor, token: int, count: int) -> TokenLogprobs:
    """Return the log-probabilities of a token and of the `count` likeliest from fp32 `[vocab]` logits."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return TokenLogprobs(float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
