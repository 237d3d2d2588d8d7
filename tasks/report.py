"""Write `report.json` and the page made from it, with facts of the run itself: links, registry, hardware."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import time
from pathlib import Path

from openba import durable
from openba.config import CONFIGS
from openba.json_types import JsonObject
from openba.redact import redact, redact_values
from openba.report.ablation import ablation_csv
from openba.report.collect import collect
from openba.report.evolution import evolution_csv
from openba.report.page import render
from openba.report.paper_tables import write_tables
from tasks.registry import Registration
from tasks.session import Session


def write_report(session: Session, registered: list[Registration]) -> str:
    """Collect, render and write; returns the page's path."""
    collected = collect(session.pipeline, session.store, session.states) | {
        "git": _git(),
        "hardware": _hardware(),
        "started": session.started,
        "seconds": round(time.monotonic() - session.clock, 1),
        "links": links(session),
        "work": {name: list(finished_work[1:]) for name, finished_work in session.work.items()},
        "registry": [_registry_row(row) for row in registered],
    }
    report = redact_values(collected)  # a source's address in a recipe may hold a password
    report_folder = session.home.report
    report_folder.mkdir(parents=True, exist_ok=True)
    durable.write_text(report_folder / "report.json", json.dumps(report, ensure_ascii=False, indent=1))
    durable.write_text(report_folder / "report.html", render(report))
    # After the files, which are what counts if Prefect does not answer.
    session.page.close(report["steps"], report["links"])
    write_tables(report_folder / "tables", report["evaluations"])
    for figure_number, csv_text in ((5, ablation_csv(report["ablation"])), (6, evolution_csv(report))):
        (report_folder / "tables" / f"figure-{figure_number}.csv").write_text(csv_text, encoding="utf-8")
    return str(report_folder / "report.html")


def links(session: Session) -> dict[str, str]:
    """Addresses to look at after a run; of a server that has ended, with the command that shows it."""
    home = session.home
    flow_run = f"/runs/flow-run/{session.flow_run}"
    addresses = {
        "Report": str(home.report / "report.html"),
        "Prefect run": os.environ["PREFECT_API_URL"].removesuffix("/api") + flow_run,
        **session.tracker.links(),
        "Ray dashboard": _ray_link(session),
    }
    return {label: redact(address) for label, address in addresses.items()}


def _ray_link(session: Session) -> str:
    if session.ray is None:
        return "not started: every job's output was there already"
    if session.ray.embedded:
        log_note = "are deleted with it" if session.ray.scratch else f"stay in {session.home.root / 'ray'}"
        return f"{session.ray.dashboard}  (while a run is going; its logs {log_note})"
    return session.ray.dashboard


def _registry_row(registration: Registration) -> JsonObject:
    row_values = dataclasses.asdict(registration)
    return row_values | {"alias": row_values.pop("aliases")}


def _git() -> JsonObject | None:
    """Return commit and state of the checkout, of an image the commit that it was built from, else None."""
    if commit := os.environ.get("OPENBA_COMMIT"):
        return {"commit": commit, "dirty": False}

    def ask(*command: str) -> str:
        completed = subprocess.run(
            ["git", "-C", str(CONFIGS.parent), *command], capture_output=True, text=True, check=True
        )
        return completed.stdout.strip()

    try:
        # An installed package may lie in a folder of another repository, whose commit is not openba's.
        if Path(ask("rev-parse", "--show-toplevel")) != CONFIGS.parent:
            return None
        return {"commit": ask("rev-parse", "--short", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # not a checkout, or no git: the report says so
        return None


def _hardware() -> str:
    processor_model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    system_name = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} x {processor_model}, {system_name}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
