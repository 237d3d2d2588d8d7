"""Rank runs by the one score that their pipeline fixes (`openba leaderboard`).

Owns which facts of a report make a row. It reads `report.json` and computes sums only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from openba.errors import UserError
from openba.json_types import JsonObject


class Entry(TypedDict):
    """One run."""

    run: str
    """Folder that it was read from."""
    pipeline: str
    size: int | None
    commit: str
    """Commit of the code, with a plus where the checkout had uncommitted changes."""
    target: str
    """`STEP BENCHMARK METRIC`, from the pipeline's `target`."""
    score: float
    stderr: float
    n: int
    parameters: int
    tokens: int
    device_hours: float
    planned_device_hours: float
    kwh: float
    """Energy by the paper's method: device hours times nominal power times PUE."""
    planned_kwh: float
    money: float | None
    """None where the runtime states no price."""
    planned_money: float | None


def read_entry(folder: Path) -> Entry:
    """Return the row of a run.

    Args:
        folder: an OPENBA_HOME, its `report` folder, or the file itself.

    Raises:
        UserError: there is no report, its pipeline fixes no target, or the target was not scored.
    """
    candidates = [folder, folder / "report.json", folder / "report" / "report.json"]
    report_file = next((path for path in candidates if path.is_file()), None)
    if report_file is None:
        raise UserError(f"{folder}: no report.json; give the OPENBA_HOME of a run, or its folder `report`")
    report = read_report(report_file)
    target = report.get("target")
    planned = report.get("plan")
    if target is None or planned is None:
        raise UserError(
            f"{report_file}: its pipeline has no `target`, the score that runs are ranked by; set one, such "
            "as {step: stage3, benchmark: bbc-topic, metric: accuracy}, and run again"
        )
    evaluation = next(
        (
            row
            for row in report["evaluations"]
            if (row["model"], row["benchmark"]) == (target["step"], target["benchmark"])
        ),
        None,
    )
    metric = target["metric"]
    if evaluation is None or metric not in evaluation["scores"]:
        raise UserError(f"{report_file}: {_target_name(target)} was not scored; finish the run")
    costs = [training["cost"] for training in report["training"]]
    git = report["git"] or {"commit": "unknown", "dirty": False}
    return {
        "run": str(folder),
        "pipeline": report["pipeline"],
        "size": report["size"],
        "commit": f"{git['commit'][:9]}{'+' if git['dirty'] else ''}",
        "target": _target_name(target),
        "score": evaluation["scores"][metric],
        "stderr": evaluation["stderr"].get(metric, 0.0),
        "n": evaluation["n"],
        # A run's models share one shape; only a comparison of shapes has several.
        "parameters": max(training["parameters"] for training in report["training"]),
        "tokens": sum(training["tokens"] for training in report["training"]),
        "device_hours": sum(cost["device_hours"] for cost in costs),
        "planned_device_hours": planned["gpu_hours"],
        "kwh": sum(cost["energy_kwh_paper"] for cost in costs),
        "planned_kwh": planned["kwh"],
        "money": None if planned["money"] is None else sum(cost["money"] for cost in costs),
        "planned_money": planned["money"],
    }


def rank_runs(folders: Sequence[Path]) -> list[Entry]:
    """Return the rows of the runs, the highest score first.

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


def _target_name(target: JsonObject) -> str:
    return f"{target['step']} {target['benchmark']} {target['metric']}"


def read_report(report_file: Path) -> JsonObject:
    """Return the facts of a run's `report.json`.

    Raises:
        UserError: it is not there, or it is damaged.
    """
    try:
        report_facts: JsonObject = json.loads(report_file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{report_file}: no report yet; `openba run` writes it") from None
    except ValueError as error:
        raise UserError(f"{report_file}: damaged ({error}); run the pipeline again to write it") from None
    return report_facts
