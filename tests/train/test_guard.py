"""The verdict on a step's loss, the alarm on a loss that stays up, the line on copies that differ."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.recipes.train import TrainRecipe
from openba.train.guard import Guard, Verdict
from openba.train.log import EVENTS, StageLog
from openba.train.replicas import told

ALONE = cast(Any, SimpleNamespace(rank=0, world=1, sum=lambda values: values))


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return make(tmp_path)


def make(folder: Path, *changes: str) -> Guard:
    recipe = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe, list(changes))
    return Guard(recipe, StageLog(folder, enabled=True))


def feed(guard: Guard, losses: list[float], start: int = 0) -> list[str]:
    """Why each step was not taken."""
    reasons = []
    for step, loss in enumerate(losses, start + 1):
        verdict = guard.judge(ALONE, loss * 10, 10, [])
        reasons.append(guard.taken(step, verdict, applied=not verdict.reason, items=lambda: [1, 2]))
    return reasons


@pytest.mark.parametrize(
    ("loss", "told"), [(math.nan, "not finite on rank 0"), (math.inf, "not finite"), (1e5, "above")]
)
def test_faults_17_18_the_verdict(guard: Guard, loss: float, told: str) -> None:
    assert told in feed(guard, [3.0, loss])[1]
    assert guard.log.rows(EVENTS)[0]["samples"] == [1, 2]
    assert feed(guard, [9_999.0], start=2) == [""]
    assert guard.bad == 0


@given(st.lists(st.floats(2, 3), min_size=128, max_size=128), st.floats(0, 100))
def test_fault_18_the_sigma_rule_is_off_unless_asked_for(losses: list[float], far: float) -> None:
    folder = Path("/dev/null")  # nothing is noted
    off, on = (make(folder, *change) for change in ([], ["skip_loss_sigma=6"]))
    for guard in (off, on):
        guard.log.enabled = False
        feed(guard, losses)
    mean = sum(losses) / len(losses)
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / len(losses))
    assert feed(off, [mean + far]) == [""]
    assert bool(feed(on, [mean + far])[0]) == (far > 6 * spread) or far == pytest.approx(6 * spread)


def test_fault_20_a_loss_that_stays_up_is_an_alarm_once(guard: Guard) -> None:
    feed(guard, [4.0] * 60)
    feed(guard, [9.0] * 3, start=60)
    assert guard.log.rows(EVENTS) == []  # three steps are no spike
    feed(guard, [5.0] * 60, start=63)
    (alarm,) = guard.log.rows(EVENTS)
    assert alarm["event"] == "spike"
    assert alarm["lowest"] == pytest.approx(4.0)
    assert alarm["mean"] > 4.5


def test_loss_scaling_is_no_bad_step(tmp_path: Path) -> None:
    """fp16 finds its scale by steps whose gradients overflow."""
    guard, fine = make(tmp_path, "precision=fp16"), Verdict([30.0], 3.0, "", [])
    for step in range(1, 20):
        assert guard.taken(step, fine, applied=False, items=list) == "gradients not finite"
    assert not guard.must_roll_back
    feed(guard, [math.nan] * 3)
    assert guard.must_roll_back


def test_a_checkpoint_keeps_what_the_guard_knows(tmp_path: Path, guard: Guard) -> None:
    feed(guard, [4.0] * 70 + [math.nan] * 2)
    guard.rolled_back(72, 70, "a test")
    other = make(tmp_path)
    other.begin()
    other.restore(guard.state())
    assert (other.shift, other.roll_backs) == (2, 1)
    assert other.state() == guard.state()


def test_fault_21_the_odd_one_out_is_named() -> None:
    names = ["embedding", "norm"]
    assert told([[1, 2]] * 4, names, range(4)) == ""
    assert told([[1, 2], [1, 2], [1, 3], [1, 2]], names, range(4)) == "parameters of rank 2 differ: norm"
    assert told([[1, 2], [5, 3]], names, range(2)) == "parameters of rank 0, 1 differ: embedding and 1 more"
