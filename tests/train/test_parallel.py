"""Workers that share weights, data or both compute what one worker computes, and leave the same state."""

from __future__ import annotations

from typing import Any

import pytest

from openba.config import CONFIGS, load
from openba.errors import UserError
from openba.recipes.runtime import PipelineRuntime

SHARED = ["dp2", "dp2-zero2", "dp2-zero3", "tp2-zero1", "tp2-zero2", "tp2-dp2", "alone-four"]


@pytest.mark.parametrize("run", SHARED)
def test_loss_and_norm_are_those_of_one_worker(runs: Any, run: str) -> None:
    expected, found = runs.facts["alone-twenty"]["rows"], runs.facts[run]["rows"]
    assert len(found) == 20
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-6)


def test_half_precision_is_shared_as_well(runs: Any) -> None:
    expected, found = runs.facts["alone-bf16"]["rows"], runs.facts["tp2-bf16"]["rows"]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    assert runs.facts["tp2-bf16"]["differing"] == ""


def test_fp16_finds_its_scale_on_all_ranks_at_once(runs: Any) -> None:
    """From 2^32 down to where no gradient overflows; a step is dropped on both ranks or on none."""
    data, weights = (runs.facts[run] for run in ("dp2-fp16", "tp2-fp16"))
    for run in (data, weights):
        dropped = [norm is None for _, norm in run["rows"]]
        assert all(dropped[:12])
        assert 12 <= sum(dropped) <= 18
        assert run["differing"] == ""
        assert run["state"]["scaler"]["cur_scale"] == 2.0 ** (33 - sum(dropped))
        taken = [loss for loss, norm in run["rows"] if norm is not None]
        assert min(taken) < taken[0] - 0.05  # each step has other samples: the last one may be a hard one
    assert [loss for loss, _ in weights["rows"]] == pytest.approx(
        [loss for loss, _ in data["rows"]], rel=2e-3
    )


@pytest.mark.parametrize("run", ["tp2-zero1", "tp2-zero2", "tp2-dp2"])
def test_each_rank_holds_its_share_of_the_vocabulary(runs: Any, run: str) -> None:
    assert runs.facts[run]["vocabulary"] * 2 == runs.facts["alone-twenty"]["vocabulary"]
    # What is whole on both ranks stays the same on both, bit by bit.
    assert runs.facts[run]["differing"] == ""


def test_the_state_has_the_same_tensors_however_it_was_shared(runs: Any) -> None:
    expected = runs.facts["alone-twenty"]["state"]
    for run in SHARED:
        assert runs.facts[run]["state"].keys() == expected.keys()


@pytest.mark.parametrize(("loaded", "saved"), [("one-of-tp2", "saved-tp2"), ("tp2-of-zero1", "saved")])
def test_tensor_parallelism_may_change_between_runs(runs: Any, loaded: str, saved: str) -> None:
    assert runs.facts[loaded]["state"] == runs.facts[saved]["state"]
    assert runs.facts[loaded]["losses"] == pytest.approx(runs.facts[saved]["losses"], rel=1e-6)


def test_a_stopped_run_ends_as_the_undisturbed_one(runs: Any) -> None:
    assert [row["from"] for row in runs.rows("tp2-stopped", "attempts.jsonl")] == [0, 1]
    assert runs.model_bytes("tp2-stopped") == runs.model_bytes("tp2")  # dropout and all


def test_a_stage_exports_whole_weights(runs: Any) -> None:
    expected, found = runs.weights("undisturbed"), runs.weights("tp2")  # both with dropout
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    assert runs.losses("tp2")[0] == pytest.approx(runs.losses("undisturbed")[0], rel=1e-2)


def test_heads_that_cannot_be_shared_are_refused(runs: Any) -> None:
    assert "2 ranks cannot share 3 heads" in runs.facts["tp2-uneven"]["error"]


def test_stage_three_shares_weights_already() -> None:
    with pytest.raises(UserError, match=r"tensor_parallel 4 goes with train.zero_stage 1 or 2"):
        load(CONFIGS / "runtime" / "paper.yaml", PipelineRuntime, ["train.zero_stage=3"])
