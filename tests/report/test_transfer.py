"""Gains from pretraining: paired by seed, with the error of the pairs' differences."""

from __future__ import annotations

import pytest

from openba.report.transfer import MEAN, Loss, transfer_gains


def test_a_gain_is_the_mean_of_the_seeds_own_differences() -> None:
    # The seeds differ by much and the starts by little: paired, the gain is clear.
    losses = [
        Loss("ner", start, seed, base - gain)
        for seed, base in ((1, 1.0), (2, 1.4), (3, 0.8))
        for start, gain in (("stage3", 0.1 + 0.01 * seed), ("nothing", 0.0))
    ]
    [gain, mean] = transfer_gains(losses)
    assert (gain["expert"], gain["start"], gain["seeds"]) == ("ner", "stage3", 3)
    assert gain["gain"] == pytest.approx(0.12)
    assert gain["error"] == pytest.approx(0.01 / 3**0.5)
    assert gain["loss_from_nothing"] - gain["loss"] == pytest.approx(gain["gain"])
    assert mean == gain | {"expert": MEAN}


def test_the_mean_over_experts_has_their_errors_and_nothing_unfinished_counts() -> None:
    losses = [
        Loss(
            expert,
            start,
            seed,
            1.0 + sign * (0.2 if start == "stage3" else 0.0) + 0.1 * seed * (start == "stage2"),
        )
        for expert, sign in (("ner", -1), ("tool", 1))
        for start in ("stage3", "stage2", "nothing")
        for seed in (1, 2)
    ]
    losses.append(Loss("chat", "stage3", 1, 2.0))  # nothing to compare it with yet
    rows = transfer_gains(losses)
    assert {row["expert"] for row in rows} == {"ner", "tool", MEAN}
    by_key = {(row["expert"], row["start"]): row for row in rows}
    assert by_key["ner", "stage3"]["gain"] == pytest.approx(0.2)
    assert by_key["tool", "stage3"]["gain"] == pytest.approx(-0.2)
    assert by_key[MEAN, "stage3"]["gain"] == pytest.approx(0.0)
    ner, tool, mean = (by_key[name, "stage2"]["error"] for name in ("ner", "tool", MEAN))
    assert mean == pytest.approx((ner**2 + tool**2) ** 0.5 / 2)
    assert ner > 0


def test_without_trainings_there_is_no_row() -> None:
    assert transfer_gains([]) == []
