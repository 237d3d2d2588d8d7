"""`openba sweep`: the trials of a sweep as one Prefect flow, then their table and picture.

`openba.sweep` makes and compares the trials; their steps are built as those of any run.
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
    """Build every trial, at most `runtime.parallel_jobs` trainings at a time, and print their losses.

    A trial that fails has a row without a loss; the others are built nevertheless.
    """
    trials = make_trials(pipeline, settings, until)
    home = Home.from_environment()
    all_steps = steps_of(trials)
    with open_session(trials[0].pipeline, home, all_steps, str(runtime.flow_run.id)) as session:
        try:
            build_steps(session, all_steps)
        finally:
            results = [result(trial, session.store.manifest(trial.step)) for trial in trials]
            sweep_folder = home.root / "sweeps" / trials[0].pipeline.config.name / trials[0].step.name
            _write(sweep_folder, results)
            _print(sweep_folder, results)


def _write(sweep_folder: Path, results: list[Result]) -> None:
    sweep_folder.mkdir(parents=True, exist_ok=True)
    result_rows = [trial_result.row() for trial_result in ranked(results)]
    (sweep_folder / "sweep.json").write_text(json.dumps(result_rows, indent=1), encoding="utf-8")
    draw(results, sweep_folder / "sweep.svg")


def _print(sweep_folder: Path, results: list[Result]) -> None:
    console_width = None if sys.stdout.isatty() else 140
    console = Console(highlight=False, soft_wrap=True, width=console_width)
    varied_keys = list(results[0].trial.values)
    result_table = Table(*varied_keys, "held-out loss", "± standard error", "seconds", "step", box=None)
    for trial_result in ranked(results):
        number_cells = [
            "failed" if trial_result.loss is None else f"{trial_result.loss:.4f}",
            "" if trial_result.error is None else f"{trial_result.error:.4f}",
            "" if trial_result.seconds is None else f"{trial_result.seconds:.0f}",
        ]
        result_table.add_row(*trial_result.trial.values.values(), *number_cells, trial_result.trial.step.key)
    console.print(result_table)
    console.print(verdict(results), markup=False)
    console.print(str(sweep_folder / "sweep.svg"), markup=False)
