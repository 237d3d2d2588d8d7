"""The gates, the way back in the promotion log, and who is started by whom in prefect.yaml."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from openba.gate import champion_refusals, stage_refusals
from openba.recipes.pipeline import GateConfig
from tasks.events import PASSED
from tasks.registry import _champions_before

SOUND = {"heldout_loss": 2.5, "energy_joules": {"cpu": 12.0}}
STRICT = GateConfig(evaluation=True, contamination=True, energy=True)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, "2.5"])
def test_a_loss_that_is_no_finite_number_stops_the_chain(loss: Any) -> None:
    assert stage_refusals({"heldout_loss": loss}, None)


def test_a_limit_on_the_loss_is_kept() -> None:
    assert stage_refusals(SOUND, 2.4) == ["heldout_loss: 2.5000 is above 2.4"]
    assert stage_refusals(SOUND, 2.5) == []


def test_each_rule_of_the_gate_refuses_by_itself() -> None:
    scores = {"benchmarks": {"bbc-topic": {"scores": {}}}}
    broken = {"benchmarks": {"bbc-topic": {"error": "no records"}}}
    assert champion_refusals(SOUND, scores, {}, STRICT) == []
    assert champion_refusals(SOUND, None, {}, STRICT) == ["evaluation: not built"]
    assert champion_refusals(SOUND, broken, {}, STRICT) == ["evaluation: bbc-topic: no records"]
    assert champion_refusals(SOUND, scores, None, STRICT) == ["contamination: not built"]
    assert champion_refusals(SOUND | {"energy_joules": {"cpu": 0.0}}, scores, {}, STRICT)
    assert champion_refusals({"heldout_loss": 1.0}, None, None, GateConfig()) == []


def test_rollbacks_go_back_one_by_one() -> None:
    def before(*versions: str) -> str | None:
        return _champions_before([{"version": v} for v in versions], versions[-1])

    assert before("1") is None
    assert before("1", "2", "3") == "2"
    assert before("1", "2", "3", "2") == "1"
    assert before("1", "2", "1", "3") == "1"


def test_the_triggers_lead_from_data_to_promotion(root: Path) -> None:
    deployments = yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]
    starts = {
        d["name"]: trigger["match"]["prefect.resource.id"]
        for d in deployments
        for trigger in d.get("triggers", [])
        if PASSED in trigger["expect"]
    }
    for name, before in {"stage1": "data", "stage2": "stage1", "stage3": "stage2", "chat": "stage3"}.items():
        assert starts[name] == f"openba.step.{before}"
    assert "openba.step.chat" in starts["evaluate"]
    assert starts["promote"] == "openba.step.evaluate-*"
    assert not any(schedule["active"] for d in deployments for schedule in d.get("schedules", []))
