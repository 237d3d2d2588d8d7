"""Tokens are drawn as asked for every value that a request may have, and no row changes another's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openba.serve.sampling import Sampling, choose_tokens, token_logprobs

VOCABULARY = 50


def one(logits: torch.Tensor, sampling: Sampling) -> int | None:
    """The next token of one row."""
    return choose_tokens(logits[None].clone(), [sampling], [sampling.random_generator(logits.device)])[0]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampling = Sampling(temperature=1.0, top_p=0.6, seed=1)
    generator = sampling.random_generator(torch.device("cpu"))
    drawn = [choose_tokens(probabilities.log()[None], [sampling], [generator])[0] for _ in range(2000)]
    # 0.5 alone is less than 0.6, with the next it is enough: two remain, 5 to 3.
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 2000 == pytest.approx(5 / 8, abs=0.05)
    assert {one(probabilities.log(), Sampling(temperature=0.01, seed=seed)) for seed in range(50)} == {0}


@given(
    temperature=st.floats(0, 2) | st.sampled_from([1e-39, 5e-324, 1e-45, 1e-5, 9e-6]),
    top_p=st.floats(0, 1) | st.sampled_from([1e-60, 5e-324, 1.0]),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    scale=st.sampled_from([1e-30, 1.0, 1e4, 1e37]),
)
def test_every_value_of_a_request_gives_a_token(
    temperature: float, top_p: float, seed: int | None, scale: float
) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * scale
    token = one(logits, Sampling(temperature=temperature, top_p=top_p, seed=seed))
    assert token is not None
    assert 0 <= token < VOCABULARY
    if temperature < 1e-5 or (top_p <= 1e-9 and scale >= 1):  # else several are the likeliest
        assert token == int(logits.argmax())


@given(
    bad=st.lists(st.booleans(), min_size=2, max_size=8),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    everywhere=st.booleans(),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_a_row_that_is_not_finite_fails_alone(
    bad: list[bool], value: float, everywhere: bool, temperature: float
) -> None:
    clean = torch.randn(len(bad), VOCABULARY, generator=torch.Generator().manual_seed(1))
    samplings = [Sampling(temperature=temperature, seed=row) for row in range(len(bad))]

    def chosen(logits: torch.Tensor) -> list[int | None]:
        return choose_tokens(
            logits.clone(), samplings, [each.random_generator(logits.device) for each in samplings]
        )

    broken = clean.clone()
    broken[bad] = value if everywhere else broken[bad].index_fill(1, torch.tensor([7]), value)
    # One logit of minus infinity only excludes its token.
    fails = everywhere or value != -math.inf
    expected = chosen(clean)
    for row, token in enumerate(chosen(broken)):
        if not bad[row]:
            assert token == expected[row]
        elif fails:
            assert token is None
        else:
            assert token not in (None, 7)


def test_a_bias_counts_for_its_own_row() -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 3] = 5
    biased = Sampling(logit_bias={9: 100.0, 3: -100.0})
    assert choose_tokens(logits.clone(), [biased, Sampling()], [None, None]) == [9, 3]


def test_logprobs_are_those_of_the_model() -> None:
    logits = torch.tensor([1.0, 2.0, -math.inf, 0.5])
    found = token_logprobs(logits, 0, 20)
    assert found.chosen_logprob == pytest.approx(float(logits.log_softmax(-1)[0]))
    assert [token for token, _ in found.top_tokens] == [1, 0, 3, 2]
    assert sum(math.exp(logprob) for _, logprob in found.top_tokens) == pytest.approx(1)
    assert token_logprobs(logits, 1, 0).top_tokens == []
