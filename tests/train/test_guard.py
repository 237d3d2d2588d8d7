"""The verdict on a step's loss, the alarm on a loss that stays up, the line on copies that differ."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.recipes.train import TrainRecipe
from openba.train.guard import Guard, Outcome, Verdict
from openba.train.replicas import describe_difference


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return make(tmp_path)


def make(folder: Path, *changes: str) -> Guard:
    recipe = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe, list(changes))
    return Guard(recipe, folder / "debug")


def outcomes(guard: Guard, losses: list[float]) -> list[Outcome]:
    """How each step ended."""
    noted = []
    for loss in losses:
        verdict = guard.judge([loss * 10], 10)
        noted.append(guard.note(verdict, is_applied=not verdict.reason))
    return noted


def feed(guard: Guard, losses: list[float]) -> list[str]:
    """Why each step was not taken."""
    return [outcome.skipped_because for outcome in outcomes(guard, losses)]


@pytest.mark.parametrize(
    ("loss", "told"), [(math.nan, "not finite on rank 0"), (math.inf, "not finite"), (1e5, "above")]
)
def test_faults_17_18_the_verdict(guard: Guard, loss: float, told: str) -> None:
    assert told in feed(guard, [3.0, loss])[1]
    assert guard.bad_steps == 1
    assert feed(guard, [9_999.0]) == [""]
    assert guard.bad_steps == 0


@given(st.lists(st.floats(2, 3), min_size=128, max_size=128), st.floats(0, 100))
def test_fault_18_the_sigma_rule_is_off_unless_asked_for(losses: list[float], far: float) -> None:
    off, on = (make(Path("unused"), *change) for change in ([], ["skip_loss_sigma=6"]))
    for guard in (off, on):
        feed(guard, losses)
    mean = sum(losses) / len(losses)
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / len(losses))
    assert feed(off, [mean + far]) == [""]
    assert bool(feed(on, [mean + far])[0]) == (far > 6 * spread) or far == pytest.approx(6 * spread)


def test_fault_20_a_loss_that_stays_up_is_an_alarm_once(guard: Guard) -> None:
    noted = outcomes(guard, [4.0] * 60 + [9.0] * 3)
    assert not any(outcome.spike for outcome in noted)  # three steps are no spike
    (spike,) = (outcome.spike for outcome in outcomes(guard, [5.0] * 60) if outcome.spike)
    assert spike.lowest == pytest.approx(4.0)
    assert spike.mean > 4.5


def test_loss_scaling_is_no_bad_step(tmp_path: Path) -> None:
    """fp16 finds its scale by steps whose gradients overflow."""
    guard, fine = make(tmp_path, "precision=fp16"), Verdict([30.0], 3.0, "")
    for _ in range(20):
        assert guard.note(fine, is_applied=False).skipped_because == "gradients not finite"
    assert not guard.must_roll_back
    feed(guard, [math.nan] * 3)
    assert guard.must_roll_back


def test_a_checkpoint_keeps_what_the_guard_knows(tmp_path: Path, guard: Guard) -> None:
    feed(guard, [4.0] * 70 + [math.nan] * 2)
    guard.roll_back(72, 70, "a test")
    other = make(tmp_path)
    other.resume([{"event": "rolled back", "shift": 2, "roll_backs": 1}])
    other.restore(guard.state())
    assert (other.shift, other.roll_backs) == (2, 1)
    assert other.state() == guard.state()


def test_fault_21_the_odd_one_out_is_named() -> None:
    names = ["embedding", "norm"]
    assert describe_difference([[1, 2]] * 4, names, range(4)) == ""
    third_differs = [[1, 2], [1, 2], [1, 3], [1, 2]]
    assert describe_difference(third_differs, names, range(4)) == "parameters of rank 2 differ: norm"
    both_differ = describe_difference([[1, 2], [5, 3]], names, range(2))
    assert both_differ == "parameters of rank 0, 1 differ: embedding and 1 more"
