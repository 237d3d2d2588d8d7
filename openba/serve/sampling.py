"""Next token of each row: greedy or sampled, after the request's biases; log-probabilities on request.

Owns the arithmetic on logits. Rows are computed independently, so neither the parameters of a request nor
the logits of its row can change another row's token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LOWEST_TEMPERATURE = 1e-5
"""Below it decoding is greedy: a logit lower by 1e-3 would be sampled once in e^100 times."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of one request."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling: probability mass of the likeliest tokens to sample from; at least one token."""
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id to the number added to its logit."""
    top_logprobs: int | None = None
    """Number of alternatives to record per token; None: record no log-probabilities."""

    def random_generator(self, device: torch.device) -> torch.Generator | None:
        """Return the row's own random number generator; None for greedy decoding."""
        if self.temperature < LOWEST_TEMPERATURE:
            return None
        # One generator per row: tokens of other rows must not advance it, or a seed would give other answers
        # in other company.
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

    chosen_logprob: float
    top_tokens: list[tuple[int, float]]
    """Most likely token ids with their log-probabilities, in descending order."""


@torch.inference_mode()
def choose_tokens(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> list[int | None]:
    """Return the next token of each row of fp32 `[rows, vocab]`; None for a row whose logits are not finite.

    A NaN, an infinite logit, or none that is finite makes a row fail; single logits of minus infinity only
    exclude their token. Biases are added to `logits` in place.
    """
    for row, sampling in enumerate(samplings):
        if sampling.logit_bias:
            token_ids = list(sampling.logit_bias)
            bias_values = torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
            logits[row, token_ids] += bias_values
    # The maximum of a row that contains a NaN is NaN, so one reduction finds all rows that failed.
    max_logits, likeliest_ids = logits.max(-1)
    tokens: list[int | None] = likeliest_ids.tolist()
    for row, (max_logit, generator) in enumerate(zip(max_logits.tolist(), generators, strict=True)):
        if not math.isfinite(max_logit):
            tokens[row] = None
        elif generator is not None:
            tokens[row] = _sample(logits[row], max_logit, samplings[row], generator)
    return tokens


def _sample(logits: Tensor, max_logit: float, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample one token from `[vocab]` logits."""
    # In fp64, relative to the maximum: small temperatures do not overflow, and top_p = 1e-60 is not 0.
    probabilities = torch.softmax((logits.double() - max_logit) / sampling.temperature, -1)
    # Without sorting the vocabulary, which nucleus sampling needs.
    if sampling.top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    sorted_probabilities, sorted_ids = probabilities.sort(descending=True)
    mass_before = sorted_probabilities.cumsum(-1) - sorted_probabilities
    is_excluded = mass_before >= sampling.top_p
    is_excluded[0] = False  # top_p = 0 still needs one token
    sorted_probabilities[is_excluded] = 0
    return int(sorted_ids[torch.multinomial(sorted_probabilities, 1, generator=generator)])


@torch.inference_mode()
def token_logprobs(logits: Tensor, token: int, top_count: int) -> TokenLogprobs:
    """Return the log-probabilities of a token and of the `top_count` likeliest from fp32 `[vocab]` logits."""
    logprobs = logits.log_softmax(-1)
    top_values, top_ids = logprobs.topk(min(top_count, len(logprobs)))
    top_tokens = list(zip(top_ids.tolist(), top_values.tolist(), strict=True))
    return TokenLogprobs(float(logprobs[token]), top_tokens)
