"""Measure what `openba run tiny` and `small` learn, against chance, classical models and their targets.

`tiny` is run anew in a temporary folder; `small` in `OPENBA_HOME/learning/small`, where what an earlier run
has built is reused: its scores are told, and its time only if this run built everything.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figure import Figure
from benchmarks.operations.story import overhead
from openba.graph import Pipeline, find_pipeline
from openba.home import Home
from openba.plan import plan
from openba.report.skills import Skill, skills
from openba.train.log import METRICS, read_rows
from tests.harness.processes import run

OPENBA = str(Path(sys.executable).with_name("openba"))
TOKENS_BEFORE = 3_466_240
"""Padded tokens of all trainings of `tiny` in version 0.1: its recipe's steps x batch x lengths."""
TARGETS = {
    "tiny": {"bbc-topic": 80, "review-sentiment": 75, "identity": 100, "ner": 20, "tool": 30},
    "small": {"bbc-topic": 95, "review-sentiment": 88, "ner": 60, "tool": 60},
}
"""Benchmark -> percent of its first metric."""
_SECONDS = {"tiny": 360, "small": 75 * 60}
_PARSES = 80
_TASKS = ("bbc-topic", "review-sentiment", "ner", "code", "tool", "translate-zh-en")
_TASKS_HELD = 4
_OF_COPY = 2.0
_COPY = "copy of the question"


def figures() -> Iterator[Figure]:
    """`tiny`, then `small`."""
    with tempfile.TemporaryDirectory(prefix="openba-learning-") as folder:
        yield from _run("tiny", Path(folder) / "home")
    yield from _run("small", Home.from_environment().root / "learning" / "small")


def _run(pipeline: str, home: Path) -> Iterator[Figure]:
    home.mkdir(parents=True, exist_ok=True)
    cpu: dict[tuple[int, float], float] = {}

    def watch(tree: list[psutil.Process]) -> None:
        for process in tree:
            try:
                cpu[process.pid, process.create_time()] = sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue

    ran = run([OPENBA, "run", pipeline], {"OPENBA_HOME": str(home)}, home.with_suffix(".log"), watch)
    report = json.loads((home / "report" / "report.json").read_text(encoding="utf-8"))
    if all(step["state"] == "built" for step in report["steps"]):
        yield Figure(f"learning/{pipeline}_run", ran.seconds, "s", _SECONDS[pipeline])
        yield Figure(f"learning/{pipeline}_cpu", sum(cpu.values()), "s")
        yield from overhead(report["work"], ran.seconds, f"learning/{pipeline}_orchestration", 12.0)
        yield _start_up(pipeline, report, home)
    if pipeline == "tiny":
        tokens = plan(Pipeline(find_pipeline("tiny")), Home(home).store)["total"]["tokens"]
        yield Figure("learning/tiny_tokens_of_before", tokens / TOKENS_BEFORE, "x", 2, "higher")
    yield from _scores(pipeline, skills(report["evaluations"]))
    yield from _source_use(pipeline, report["training"])


def _scores(pipeline: str, rows: Sequence[Skill]) -> Iterator[Figure]:
    """Compare each benchmark with its floor and the best classical model; `small` has targets besides."""
    by_name = {row.evaluation["benchmark"]: row for row in rows}
    for name, row in by_name.items():
        target = TARGETS[pipeline].get(name)
        rivals = [
            f"{rival.name} {rival.score:.1f} +- {rival.stderr:.1f}"
            for rival in (row.floor, row.classical)
            if rival
        ]
        peer = f"+- {row.stderr:.1f}, n={row.evaluation['n']}; {'; '.join(rivals)}; {row.verdict}"
        yield Figure(f"learning/{pipeline}_{name}_{row.metric}", row.score, "%", target, "higher", peer)
    if pipeline != "small":
        return
    parses = by_name["code"].evaluation["scores"]["python_syntax"]
    yield Figure("learning/small_code_parses", parses, "%", _PARSES, "higher")
    for name in ("translate-zh-en", "translate-en-zh"):
        evaluation: Any = by_name[name].evaluation
        copied = evaluation["baselines"]["methods"][_COPY]["scores"]["chrf"]
        ratio = evaluation["scores"]["chrf"] / copied
        yield Figure(f"learning/small_{name}_chrf_of_copy", ratio, "x", _OF_COPY, "higher")
    held = sum(by_name[name].verdict in ("won", "tied") for name in _TASKS)
    yield Figure("learning/small_tasks_won_or_tied", held, "of 6", _TASKS_HELD, "higher")


def _source_use(pipeline: str, training: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """Loss with another sample's source over the loss with the right one, at the end of each training."""
    for row in training:
        end = row["heldout"][-1]
        yield Figure(
            f"learning/{pipeline}_{row['step']}_shuffled_of_right", end["shuffled"] / end["loss"], "x"
        )


def _start_up(pipeline: str, report: dict[str, Any], home: Path) -> Figure:
    """Seconds from the submission of Stage II's job to the end of its first step; Ray is up by then."""
    step = next(row for row in report["steps"] if row["name"] == "stage2")
    folder = home / "store" / "stage2" / step["fingerprint"]
    submitted = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["started"]
    first = read_rows(folder / METRICS)[0]["time"]
    return Figure(f"learning/{pipeline}_start_up", first - submitted, "s", 8)
