"""The alert rules: fired by each fault and by nothing else, and made from metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.gauges import METRICS_TOLD
from tests.harness.programs import require_programs


@pytest.fixture(scope="module")
def rules(root: Path) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((root / "infra" / "prometheus" / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def test_each_fault_alerts_and_an_undisturbed_training_does_not(root: Path) -> None:
    require_programs("promtool")
    command = ["promtool", "test", "rules", root / "tests" / "infra" / "alerts.test.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_tried_in_both_ways_and_has_its_line_in_the_runbook(
    root: Path, rules: list[dict[str, Any]]
) -> None:
    tests = yaml.safe_load((root / "tests" / "infra" / "alerts.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names
    runbook = (root / "docs" / "cluster.md").read_text()
    assert [name for name in names if f"`{name}`" not in runbook] == []


def test_our_metrics_are_those_that_a_training_tells(rules: list[dict[str, Any]]) -> None:
    asked = {name for rule in rules for name in re.findall(r"ray_(openba_\w+)", rule["expr"])}
    assert asked
    assert asked <= METRICS_TOLD.keys()


def test_compose_mounts_what_the_configuration_names(root: Path) -> None:
    config = yaml.safe_load((root / "infra" / "prometheus" / "prometheus.yaml").read_text())
    assert all((root / "infra" / "prometheus" / name).exists() for name in config["rule_files"])
    services = yaml.safe_load((root / "infra" / "compose.yaml").read_text())["services"]
    assert "./prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    (names,) = [
        name
        for job in config["scrape_configs"]
        for dns in job.get("dns_sd_configs", [])
        for name in dns["names"]
    ]
    assert names in services
