"""Learning rates: the warm-up, each schedule, and the rates of the release's scripts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.recipes.train import OptimRecipe, TrainRecipe
from openba.train.schedules import learning_rate

recipes = st.builds(
    OptimRecipe,
    lr=st.floats(1e-5, 1e-2),
    min_lr=st.floats(0, 1e-5),
    warmup=st.integers(0, 50),
    decay=st.none() | st.integers(51, 200),
    schedule=st.sampled_from(["cosine", "constant", "linear"]),
)


@given(recipe=recipes)
def test_it_rises_then_never_rises_again(recipe: OptimRecipe) -> None:
    rates = [learning_rate(recipe, step, 200) for step in range(250)]
    up, down = rates[: recipe.warmup], rates[recipe.warmup :]
    assert all(a < b for a, b in pairwise(up))
    assert all(a >= b for a, b in pairwise(down))
    assert down[0] == pytest.approx(recipe.lr)
    assert min(rates) > 0 or recipe.min_lr == 0
    end = recipe.lr if recipe.schedule == "constant" else recipe.min_lr
    assert rates[recipe.decay or 200] == rates[-1] == pytest.approx(end, abs=1e-12)


def test_the_first_step_has_a_rate_and_the_last_of_warm_up_the_full_one() -> None:
    recipe = OptimRecipe(lr=1.0, warmup="4 steps")
    assert [learning_rate(recipe, step, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_half_way_down_the_cosine() -> None:
    recipe = OptimRecipe(lr=1.0, min_lr=0.2, warmup="10 steps", decay="110 steps")
    assert learning_rate(recipe, 60, 1000) == pytest.approx(0.6)


def test_half_way_down_the_line() -> None:
    recipe = OptimRecipe(lr=1.0, min_lr=0.2, warmup="10 steps", decay="110 steps", schedule="linear")
    assert learning_rate(recipe, 35, 1000) == pytest.approx(0.8)


def test_the_inverse_square_root_is_t5s() -> None:
    recipe = OptimRecipe(lr=0.01, warmup="10000 steps", schedule="inverse_sqrt")
    # T5: 1 / sqrt(max(n, k)), k = 10,000 warm-up steps, n counted from 1; it does not depend on the budget.
    for step in (9_999, 10_000, 39_999, 999_999):
        for steps in (10**6, 10**7):
            assert learning_rate(recipe, step, steps) == pytest.approx((step + 1) ** -0.5)


def test_wsd_is_stable_until_its_last_part_whatever_the_budget() -> None:
    recipe = OptimRecipe(lr=1.0, min_lr=0.1, warmup="10 steps", decay="20 steps", schedule="wsd")
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    longer = [learning_rate(recipe, step, 500) for step in range(100)]
    assert rates[10:81] == longer[10:81] == [1.0] * 71  # a checkpoint there goes on with another budget
    assert rates[90] == pytest.approx(0.55)
    assert 0.1 < rates[99] < rates[98] < 0.25
    assert learning_rate(recipe, 100, 100) == pytest.approx(0.1)
    by_default = OptimRecipe(lr=1.0, schedule="wsd")
    assert [learning_rate(by_default, step, 100) for step in (90, 95)] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(
    ("stage", "rates"),
    [
        ("stage1", {0: 1e-4 / 2000, 1999: 1e-4, 51_000: 5.5e-5, 100_000: 1e-5, 150_000: 1e-5}),
        ("stage2", {0: 4e-5, 25_000: 1e-5}),
        ("stage3", {0: 7e-6 / 500, 499: 7e-6, 30_000: 7e-6}),
    ],
)
def test_the_released_schedules(stage: str, rates: dict[int, float]) -> None:
    recipe = load(CONFIGS / "pretrain" / f"{stage}.yaml", TrainRecipe)
    assert {step: learning_rate(recipe.optim, step, recipe.steps) for step in rates} == pytest.approx(rates)
