"""Runs in the order of the score that their pipeline fixes, from their reports' facts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from openba.errors import UserError
from openba.report.leaderboard import rank_runs
from tests.report.test_report import sample

TARGET = {"step": "stage3", "benchmark": "sentiment_zh", "metric": "accuracy"}


def write(home: Path, score: float, **changes: Any) -> Path:
    report: Any = copy.deepcopy(sample())
    report |= {"size": 8, "target": TARGET, "plan": {"gpu_hours": 0.2, "kwh": 0.003, "money": None}}
    report["evaluations"][0]["scores"]["accuracy"] = score
    report |= changes
    (home / "report").mkdir(parents=True)
    (home / "report" / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return home


def test_the_highest_score_comes_first_with_what_it_cost_and_was_planned_to(tmp_path: Path) -> None:
    worse, better = write(tmp_path / "one", 61.0), write(tmp_path / "two", 75.5)
    entries = rank_runs([worse, better / "report" / "report.json"])
    assert [entry["score"] for entry in entries] == [75.5, 61.0]
    first = entries[0]
    assert (first["target"], first["n"], first["commit"]) == (
        "stage3 sentiment_zh accuracy",
        100,
        "4f2a9c1d7+",
    )
    assert first["device_hours"] == pytest.approx(0.061 + 0.031 + 0.027 + 5 * 0.006)
    assert first["planned_device_hours"] == 0.2
    assert first["money"] is None


def test_runs_that_cannot_be_ranked_are_refused_by_name(tmp_path: Path) -> None:
    scored = write(tmp_path / "one", 61.0)
    with pytest.raises(UserError, match=r"two.*has no `target`"):
        rank_runs([scored, write(tmp_path / "two", 61.0, target=None)])
    other = write(
        tmp_path / "three", 61.0, target=TARGET | {"benchmark": "translation_en_zh", "metric": "chrf"}
    )
    with pytest.raises(UserError, match="compare runs of one target"):
        rank_runs([scored, other])
    with pytest.raises(UserError, match="finish the run"):
        rank_runs([write(tmp_path / "four", 61.0, evaluations=[])])
    with pytest.raises(UserError, match=r"no report\.json"):
        rank_runs([tmp_path / "five"])
