"""Quantities with units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.units import Budget, human, human_time, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("40B tokens", "tokens", 40_000_000_000),
        ("1.5M tokens", "tokens", 1_500_000),
        ("2.01k steps", "steps", 2010),
        ("1.001B tokens", "tokens", 1_001_000_000),
        ("2000 steps", "steps", 2000),
        ("100k steps", "steps", 100_000),
        ("1 step", "steps", 1),
        ("2_000 steps", "steps", 2000),
    ],
)
def test_counts(text: str, unit: str, value: int) -> None:
    assert parse_count(text, unit) == value


@pytest.mark.parametrize(
    "text", ["40B", "40 tokens", "tokens", "1.5 steps", "-3 steps", 40, True, "4Q steps"]
)
def test_a_wrong_count_of_steps_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="steps"):
        parse_count(text, "steps")


@given(st.integers(1, 10**15))
def test_a_budget_survives_its_stored_form(amount: int) -> None:
    budget = Budget.model_validate(f"{amount} tokens")
    assert Budget.model_validate(budget.model_dump()) == budget
    assert budget.amount == amount


def test_bytes_and_words() -> None:
    assert parse_bytes("80GiB") == 80 * 2**30
    assert human(12_300_000) == "12.3M"
    assert human_time(3725) == "1:02:05"
    assert human_time(65) == "1:05"
