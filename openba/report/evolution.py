"""Figure 6 from the user's own run: a benchmark's score over the steps of one training.

Owns the place of a model on the axis of steps: a stage's end, and the steps whose weights it keeps. Scores
are the evaluations' first; nothing is drawn between two points but the line from one to the next.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from typing import Any

Point = dict[str, Any]
"""`model`, `step` (of all stages so far), `score`, `stderr`, `n`."""


def evolution(report: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Benchmark -> points in the order of training, for benchmarks that were asked twice or more.

    Experts are left out: each starts from Stage III and they do not follow each other.
    """
    began, steps, so_far = {}, {}, 0
    for run in report.get("training") or []:
        if run.get("baseline_heldout") is None and run.get("steps") is not None:
            began[run["step"]], steps[run["step"]] = so_far, run["steps"]
            so_far += run["steps"]
    points: dict[str, list[Point]] = {}
    for row in [*(report.get("evaluations") or []), *(report.get("evaluations_between") or [])]:
        if row["model"] in steps and row["scores"]:
            metric = next(iter(row["scores"]))
            points.setdefault(row["benchmark"], []).append(
                {
                    "model": row["model"],
                    "step": began[row["model"]] + row.get("step", steps[row["model"]]),
                    "metric": metric,
                    "score": row["scores"][metric],
                    "stderr": row.get("stderr", {}).get(metric),
                    "n": row["n"],
                }
            )
    lines = {name: sorted(line, key=lambda point: point["step"]) for name, line in points.items()}
    return {name: line for name, line in lines.items() if len(line) > 1}


def evolution_csv(report: Mapping[str, Any]) -> str:
    """The points, a line each; only the heads if there are none."""
    file = StringIO()
    write = csv.writer(file, lineterminator="\n")
    keys = ("model", "step", "metric", "score", "stderr", "n")
    write.writerow(["benchmark", *keys])
    for name, line in evolution(report).items():
        for point in line:
            write.writerow([name, *(point[key] for key in keys)])
    return file.getvalue()


def evolution_chart(report: Mapping[str, Any]) -> str:
    """The points as lines with one standard error; empty if there are none."""
    lines = evolution(report)
    if not lines:
        return ""
    from openba.report.charts import Series, lines_chart

    series: list[Series] = [
        (name, [(p["step"], p["score"], p["stderr"] or 0.0) for p in line]) for name, line in lines.items()
    ]
    return lines_chart("Scores over training", series, "steps of all stages so far", "score")
