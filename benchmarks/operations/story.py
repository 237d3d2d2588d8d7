"""Group `story`: the whole tiny pipeline, again from the cache, with a killed worker, and its losses.

Everything runs in a temporary OPENBA_HOME through the `openba` command, as a user would.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figure import ROOT, Figure
from tests.harness.processes import run

OPENBA = [str(Path(sys.executable).with_name("openba"))]
GIB = 2**30


def figures() -> Iterator[Figure]:
    """First run, cached run, rebuild, losses, killed worker, tests: in this order."""
    with tempfile.TemporaryDirectory(prefix="openba-story-") as folder:
        home = Path(folder) / "home"
        yield from _first_run(home)
        yield from _cached_run(home)
        yield from _rebuilt(home)
        yield from _losses(home)
        yield from _killed_worker(home, Path(folder) / "killed")
    yield from _tests()


def _openba(home: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [*OPENBA, *arguments], cwd=ROOT, env=_environment(home), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "OPENBA_HOME": str(home)}


def _first_run(home: Path) -> Iterator[Figure]:
    ran = run([*OPENBA, "run", "tiny"], {"OPENBA_HOME": str(home)}, home.with_suffix(".first.log"))
    yield Figure("story/first_run", ran.seconds, "s", 480)
    yield Figure("story/peak_memory_pss", ran.peak_bytes / GIB, "GiB", 8)
    yield Figure("story/stray_processes", len(ran.strays), "", 0)
    yield from overhead(_report(home)["work"], ran.seconds, "story/orchestration_overhead", 15.0)


def overhead(work: dict[str, list[float]], wall: float, figure: str, most: float) -> Iterator[Figure]:
    """Share of the wall time in which no step was at work; steps side by side count once.

    Work is from the moment a job's Python starts, with its imports and the worker group's start, to the end
    of the step's function. What is within the function alone is told beside it.
    """
    for name, time_index, target in (("", 0, most), ("_without_worker_start", 1, None)):
        seconds_at_work = 0.0
        covered_until = 0.0
        for began, ended in sorted((times[time_index], times[2]) for times in work.values()):
            seconds_at_work += max(0.0, ended - max(began, covered_until))
            covered_until = max(covered_until, ended)
        yield Figure(f"{figure}{name}", 100 * (1 - seconds_at_work / wall), "%", target)


def _cached_run(home: Path) -> Iterator[Figure]:
    ran = run([*OPENBA, "run", "tiny"], {"OPENBA_HOME": str(home)}, home.with_suffix(".second.log"))
    yield Figure("story/cached_run", ran.seconds, "s", 20)
    states = [step["state"] for step in _report(home)["steps"]]
    yield Figure("story/cached_run_steps_not_cached", sum(state != "cached" for state in states), "steps", 0)


def _rebuilt(home: Path) -> Iterator[Figure]:
    """Compare the steps that a changed Stage III setting would rebuild with those that follow from it."""
    before, after = (
        {step["name"]: step for step in _openba(home, "plan", "tiny", "--json", *more)["steps"]}
        for more in ((), ("--set", "stages.stage3.optim.lr=1.0e-3"))
    )
    missed = {name for name, step in after.items() if step["state"] == "miss"}
    experts = {path.stem for path in (ROOT / "configs" / "finetune").glob("*.yaml")}
    follows = {"stage3", "evaluate-stage3"} | experts | {f"evaluate-{name}" for name in experts}
    assert all(step["state"] == "hit" for step in before.values())
    yield Figure("story/stage3_change_rebuilds_too_much", len(missed - follows), "steps", 0)
    yield Figure("story/stage3_change_rebuilds_too_little", len(follows - missed), "steps", 0)


def _losses(home: Path) -> Iterator[Figure]:
    training = {row["step"]: row for row in _report(home)["training"]}
    first = training["stage1"]["heldout"][0]
    last = training["stage1"]["heldout"][-1]
    for mode in ("R", "S", "X"):
        fall = 100 * (1 - last[mode] / first[mode])
        yield Figure(f"story/stage1_heldout_{mode}_below_step0", fall, "%", 25, "higher")
    for name, row in training.items():
        if row["baseline_heldout"] is not None:
            expert_loss = row["heldout"][-1]["loss"]
            fall = 100 * (1 - expert_loss / row["baseline_heldout"])
            peer = f"Stage III on the same held-out data: {row['baseline_heldout']:.3f}"
            yield Figure(
                f"story/{name}_heldout_below_stage3",
                fall,
                "%",
                5,
                "higher",
                peer,
                expert_loss / row["baseline_heldout"],
            )


def _killed_worker(home: Path, killed: Path) -> Iterator[Figure]:
    """Stage II once more from the same Stage I, with kill -9 of a worker after a checkpoint."""
    shutil.copytree(home / "store", killed / "store", ignore=shutil.ignore_patterns("stage2"))
    victims: list[int] = []

    def kill_one(tree: list[psutil.Process]) -> None:
        steps = next(killed.glob("work/stage2/*/metrics.jsonl"), None)
        if victims or steps is None or len(steps.read_text().splitlines()) < 12:
            return
        workers = [p for p in tree if "RayTrainWorker" in _name(p)]
        if workers:
            workers[-1].send_signal(signal.SIGKILL)
            victims.append(workers[-1].pid)

    cadence = "runtime.train.checkpoint_every=5 steps"
    command = [*OPENBA, "run", "tiny", "--until", "stage2", "--set", cadence]
    ran = run(command, {"OPENBA_HOME": str(killed)}, killed.with_suffix(".log"), kill_one)
    undisturbed, disturbed = (_facts(folder, "stage2") for folder in (home, killed))
    yield Figure("story/killed_workers", len(victims), "", 1, "higher")
    yield Figure("story/killed_worker_resumed", disturbed["resumed"], "", 1, "higher")
    difference = abs(disturbed["heldout_loss"] - undisturbed["heldout_loss"])
    yield Figure("story/killed_worker_heldout_loss_difference", difference, "nats", 0)
    yield Figure("story/killed_worker_run", ran.seconds, "s")


def _tests() -> Iterator[Figure]:
    log = Path(tempfile.gettempdir()) / "openba-story-tests.log"
    yield Figure("story/tests", run([sys.executable, "-m", "pytest"], {}, log).seconds, "s", 900)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _report(home: Path) -> Any:
    return json.loads((home / "report" / "report.json").read_text(encoding="utf-8"))


def _facts(home: Path, step: str) -> Any:
    return json.loads(next(home.glob(f"store/{step}/*/manifest.json")).read_text())["facts"]
