"""Runs side by side by the one score that their pipeline fixes: `openba leaderboard`.

Owns which facts of a report make a line. It reads `report.json` and computes nothing but sums and ratios.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from openba.errors import UserError


class Entry(TypedDict):
    """One run."""

    run: str
    """The folder it was read from."""
    pipeline: str
    size: int | None
    commit: str
    """With a plus where the checkout had changes."""
    target: str
    """`step benchmark metric`, as the pipeline fixes it."""
    score: float
    stderr: float
    n: int
    parameters: int
    tokens: int
    device_hours: float
    planned_device_hours: float
    kwh: float
    """By the paper's method."""
    planned_kwh: float
    money: float | None
    """None where the runtime states no price."""
    planned_money: float | None


def read_entry(folder: Path) -> Entry:
    """The line of a run.

    Args:
        folder: an OPENBA_HOME, its `report` folder, or the file itself.

    Raises:
        UserError: there is no report, its pipeline fixes no target, or the target was not scored.
    """
    places = [folder, folder / "report.json", folder / "report" / "report.json"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(f"{folder}: no report.json; give the OPENBA_HOME of a run, or its folder `report`")
    report = json.loads(file.read_text(encoding="utf-8"))
    wanted, planned = report.get("target"), report.get("plan")
    if wanted is None or planned is None:
        raise UserError(
            f"{file}: its pipeline fixes no `target`, the score to be ranked by; give it one and run again"
        )
    scored = [
        row
        for row in report["evaluations"]
        if (row["model"], row["benchmark"]) == (wanted["step"], wanted["benchmark"])
    ]
    if not scored or wanted["metric"] not in scored[0]["scores"]:
        raise UserError(f"{file}: {_name(wanted)} was not scored; finish the run")
    row, metric, costs = scored[0], wanted["metric"], [run["cost"] for run in report["training"]]
    git = report["git"] or {"commit": "unknown", "dirty": False}
    return {
        "run": str(folder),
        "pipeline": report["pipeline"],
        "size": report["size"],
        "commit": f"{git['commit'][:9]}{'+' if git['dirty'] else ''}",
        "target": _name(wanted),
        "score": row["scores"][metric],
        "stderr": row["stderr"].get(metric, 0.0),
        "n": row["n"],
        "parameters": max(run["parameters"] for run in report["training"]),
        "tokens": sum(run["tokens"] for run in report["training"]),
        "device_hours": sum(cost["device_hours"] for cost in costs),
        "planned_device_hours": planned["gpu_hours"],
        "kwh": sum(cost["energy_kwh_paper"] for cost in costs),
        "planned_kwh": planned["kwh"],
        "money": None if planned["money"] is None else sum(cost["money"] for cost in costs),
        "planned_money": planned["money"],
    }


def leaderboard(folders: Sequence[Path]) -> list[Entry]:
    """The runs' lines, the highest score first.

    Raises:
        UserError: see `read_entry`; or two runs have different targets.
    """
    entries = [read_entry(folder) for folder in folders]
    for entry in entries:
        if entry["target"] != entries[0]["target"]:
            raise UserError(
                f"{entry['run']} is ranked by {entry['target']} and {entries[0]['run']} by "
                f"{entries[0]['target']}; compare runs of one target"
            )
    return sorted(entries, key=lambda entry: -entry["score"])


def _name(target: dict[str, Any]) -> str:
    return f"{target['step']} {target['benchmark']} {target['metric']}"
