"""`openba sweep`: the trials of a sweep as one Prefect flow, their table and picture.

Owns the order of a sweep. Its trials are `openba.sweep`'s, its steps are built as any run's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prefect import flow, runtime
from rich.console import Console
from rich.table import Table

from flows.pipeline import RUNNER, build_steps
from openba.home import Home
from openba.sweep import Result, draw, make_trials, ranked, result, steps_of, verdict
from tasks.session import open_session


@flow(name="openba-sweep", task_runner=RUNNER, validate_parameters=False)
def sweep_flow(pipeline: str, settings: list[str], until: str | None) -> None:
    """Build every trial, as many side by side as `runtime.parallel_jobs` lets; then print what they reached.

    A trial that fails leaves a row without a loss; the others are built all the same.
    """
    trials = make_trials(pipeline, settings, until)
    home = Home.from_environment()
    steps = steps_of(trials)
    with open_session(trials[0].pipeline, home, steps, str(runtime.flow_run.id)) as session:
        try:
            build_steps(session, steps)
        finally:
            results = [result(trial, session.store.manifest(trial.step)) for trial in trials]
            folder = home.root / "sweeps" / trials[0].pipeline.config.name / trials[0].step.name
            _write(folder, results)
            _print(folder, results)


def _write(folder: Path, results: list[Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [each.row() for each in ranked(results)]
    (folder / "sweep.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    draw(results, folder / "sweep.svg")


def _print(folder: Path, results: list[Result]) -> None:
    width = None if sys.stdout.isatty() else 140
    console = Console(highlight=False, soft_wrap=True, width=width)
    keys = list(results[0].trial.values)
    table = Table(*keys, "held-out loss", "± standard error", "seconds", "step", box=None)
    for each in ranked(results):
        numbers = [
            "failed" if each.loss is None else f"{each.loss:.4f}",
            "" if each.error is None else f"{each.error:.4f}",
            "" if each.seconds is None else f"{each.seconds:.0f}",
        ]
        table.add_row(*each.trial.values.values(), *numbers, each.trial.step.key)
    console.print(table)
    console.print(verdict(results), markup=False)
    console.print(str(folder / "sweep.svg"), markup=False)
