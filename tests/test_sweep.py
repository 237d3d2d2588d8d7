"""A sweep: its trials are the product of its values, a mistake is one line, the best has its error."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.sweep import Result, draw, make_trials, ranked, result, steps_of, verdict

RATES = "stages.stage1.optim.lr=1e-3,3e-3"


def test_trials_are_the_product_and_share_what_they_can() -> None:
    trials = make_trials(
        "tiny", [RATES, "stages.stage1.batch=16,32", "stages.stage1.budget=80 steps"], "stage1"
    )
    assert [dict(trial.values) for trial in trials] == [
        {"stages.stage1.optim.lr": rate, "stages.stage1.batch": batch}
        for rate, batch in itertools.product(("1e-3", "3e-3"), ("16", "32"))
    ]
    names = [step.name for step in steps_of(trials)]
    assert names.count("stage1") == 4
    assert names.count("tokenizer") == names.count("mixture") == 1
    # An ordinary step: a run with these settings finds it.
    same = Pipeline(
        find_pipeline("tiny"),
        ["stages.stage1.optim.lr=3e-3", "stages.stage1.batch=16", "stages.stage1.budget=80 steps"],
    )
    assert same.step("stage1").fingerprint == trials[2].step.fingerprint


def test_inputs_come_before_what_needs_them() -> None:
    steps = steps_of(make_trials("tiny", [RATES], "stage2"))
    place = {step.key: number for number, step in enumerate(steps)}
    assert all(place[parent.key] < place[step.key] for step in steps for parent in step.inputs.values())


def test_a_list_is_one_value() -> None:
    trials = make_trials(
        "tiny", ["stages.stage1.optim.lr=1e-3,2e-3", "flan.shares={en: 0.5, zh: 0.5}"], "stage3"
    )
    assert len(trials) == 2
    lists = "[bbc-topic, bbc-title, review-sentiment],[bbc-topic, review-sentiment]"
    trials = make_trials("tiny", [f"flan.tasks={lists}"], "stage3")
    assert len(trials) == 2


@pytest.mark.parametrize(
    ("settings", "until", "message"),
    [
        (["stages.stage1.batch=16"], "stage1", "nothing varies"),
        (["stages.stage1.batch"], "stage1", "write it as key.path=value"),
        (["stages.stage1.batch=16,"], "stage1", "a value is empty"),
        (["stages.stage1.batch=16,16"], "stage1", "a value is given twice"),
        (["stages.stage1.batch=16,32", "stages.stage1.batch=8"], "stage1", "a setting is given twice"),
        (["stages.stage3.optim.lr=1e-3,2e-3"], "stage1", "give the same stage1"),
        (["runtime.train.workers=1,2"], "stage1", "give the same stage1"),
        ([RATES], "tokenizer", "is no training; take one of stage1"),
        ([RATES], "stage9", "no such step"),
        (["stages.stage1.optim.lrr=1,2"], "stage1", "did you mean 'lr'"),
        (["stages.stage1.seed=" + ",".join(map(str, range(101)))], "stage1", "101 trials are more than 100"),
    ],
)
def test_a_mistake_is_one_line(settings: list[str], until: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        make_trials("tiny", settings, until)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def results(*losses: float | None) -> list[Result]:
    """One trial for each loss; none: it failed."""
    seeds = ",".join(map(str, range(len(losses))))
    trials = make_trials("tiny", [f"stages.stage1.seed={seeds}"], "stage1")
    records = [
        None
        if loss is None
        else {"seconds": 3.0, "facts": {"heldout": [{"step": 0, "loss": 9.0, "loss_error": 0.1},
                                                     {"step": 8, "loss": loss, "loss_error": 0.01}]}}
        for loss in losses
    ]  # fmt: skip
    return [result(trial, record) for trial, record in zip(trials, records, strict=True)]


@given(st.permutations([5.0, 5.005, 6.0, None]))
def test_the_best_is_named_with_its_error_and_with_what_is_as_good(losses: list[float | None]) -> None:
    found = results(*losses)
    seed = {loss: f"stages.stage1.seed={number}" for number, loss in enumerate(losses)}
    assert verdict(found) == (
        f"best: {seed[5.0]}: held-out loss 5.0000 ± 0.0100; within one standard error of it: {seed[5.005]}"
    )
    assert [each.loss for each in ranked(found)] == [5.0, 5.005, 6.0, None]


def test_where_all_fail_nothing_is_called_best() -> None:
    assert verdict(results(None, float("nan"))) == "no trial reached a finite held-out loss"


def test_the_picture_shows_every_trial_that_has_a_loss(tmp_path: Path) -> None:
    draw(results(5.0, None, 6.0), tmp_path / "sweep.svg")
    drawn = "".join(ElementTree.parse(tmp_path / "sweep.svg").getroot().itertext())
    assert "stages.stage1.seed=0" in drawn
    assert "stages.stage1.seed=2" in drawn
    assert "stages.stage1.seed=1" not in drawn
