"""openba's Grafana boards and their provisioning. Their queries are asked in `test_services.py`."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tasks.gauges import METRICS_TOLD

# Newer than the schema: how an XY chart of Grafana 11 and later finds its series.
NEWER = {"options/mapping"}


@pytest.fixture(scope="module")
def board(root: Path) -> dict[str, Any]:
    return json.loads((root / "infra" / "grafana" / "boards" / "training.json").read_text())


def unknown(told: Any, understood: Any, path: str = "") -> list[str]:
    """What Grafana's schema dropped or changed while it read a board."""
    if isinstance(told, dict) and isinstance(understood, dict):
        deeper = (
            unknown(v, understood[k], f"{path}/{k}") if k in understood else [f"{path}/{k}"]
            for k, v in told.items()
        )
        return list(itertools.chain(*deeper))
    if isinstance(told, list) and isinstance(understood, list) and len(told) == len(understood):
        return list(itertools.chain(*(unknown(*pair, path) for pair in zip(told, understood, strict=True))))
    return [] if told == understood else [f"{path}: {told} -> {understood}"]


def test_grafanas_schema_understands_all_of_it(board: dict[str, Any]) -> None:
    register_default_plugins()
    read = lambda told: json.loads(JSONEncoder().encode(Dashboard.from_json(told)))  # noqa: E731
    assert {path.removeprefix("/panels/") for path in unknown(board, read(board))} <= NEWER
    misspelt = board | {"refersh": "5s"}
    assert "/refersh" in unknown(misspelt, read(misspelt))


def test_panels_have_a_place_of_their_own(board: dict[str, Any]) -> None:
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_metric_is_shown_and_every_shown_one_is_told(board: dict[str, Any]) -> None:
    shown = set(re.findall(r"ray_(openba_\w+)", json.dumps(board["panels"])))
    assert shown == METRICS_TOLD.keys()
    titles = {panel["title"] for panel in board["panels"]}
    assert {
        "Loss against tokens",
        "MFU",
        "Tokens per second",
        "Waiting for data",
        "Energy",
        "Carbon",
    } <= titles
    assert all(panel["description"] and panel["targets"] for panel in board["panels"])


def test_provisioning_finds_the_boards_and_the_data(root: Path, board: dict[str, Any]) -> None:
    """The folders are those that compose mounts; the panels ask the source that is provisioned."""
    provisioning = root / "infra" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    compose = yaml.safe_load((root / "infra" / "compose.yaml").read_text())["services"]
    mounted = {volume.split(":")[1] for volume in compose["grafana"]["volumes"]}
    providers = yaml.safe_load((provisioning / "dashboards" / "boards.yaml").read_text())["providers"]
    assert {provider["options"]["path"] for provider in providers} <= mounted
    assert source["url"].strip("${}") in compose["grafana"]["environment"]
    boards = compose["ray-head"]["environment"]["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"]
    assert f"ray-boards:{boards}" in compose["ray-head"]["volumes"]
