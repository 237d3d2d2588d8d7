"""codecarbon, really asked, without a network."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from openba.accounting.estimate import estimated
from openba.config import CONFIGS, ConfigError, load
from openba.recipes.runtime import PipelineRuntime


def test_an_estimate_asks_no_network_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*address: Any) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with estimated("CHN", pue=1.1) as figures:
        time.sleep(1)
    assert figures["kwh"] is not None
    assert figures["kgco2eq"] is not None
    assert 0 < figures["kwh"] < 0.01  # under 10 kW, for a few seconds
    assert 0.4 < figures["kgco2eq"] / figures["kwh"] < 0.8  # China's grid, by kWh
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_power_usage_effectiveness_is_in_it() -> None:
    with estimated("CHN", pue=1.0) as one, estimated("CHN", pue=3.0) as three:
        time.sleep(2)
    kwh = [figures["kwh"] for figures in (one, three)]
    assert kwh[0]
    assert kwh[1]
    assert 2 < kwh[1] / kwh[0] < 4


def test_a_country_without_a_grid_is_refused_before_a_run() -> None:
    with pytest.raises(ConfigError, match=r"codecarbon.*no country 'CN'; take a code such as"):
        load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime, ["codecarbon=CN"])
    assert load(CONFIGS / "runtime" / "paper.yaml", PipelineRuntime).codecarbon == "CHN"
