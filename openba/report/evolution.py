"""Figure 6 from the user's own run: a benchmark's score over the steps of one training.

Owns the position of a model on the axis of steps: the end of a stage, and the steps whose weights it keeps.
The score is the first one of each evaluation.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO

from openba.json_types import JsonObject
from openba.report.schema import Report

Point = JsonObject
"""`model`, `step` (of all stages so far), `metric`, `score`, `stderr`, `n`."""
_POINT_KEYS = ("model", "step", "metric", "score", "stderr", "n")


def evolution(report: Report | JsonObject) -> dict[str, list[Point]]:
    """Return benchmark -> points in the order of training, for benchmarks that were scored twice or more.

    Experts are left out: each starts from Stage III and they do not follow each other.
    """
    facts: Mapping = report
    first_step: dict[str, int] = {}
    last_step: dict[str, int] = {}
    # Stages follow each other: the steps of one are counted on from the end of the one before.
    total_steps = 0
    for training in facts.get("training") or []:
        if training.get("baseline_heldout") is None and training.get("steps") is not None:
            first_step[training["step"]] = total_steps
            total_steps += training["steps"]
            last_step[training["step"]] = total_steps
    lines: dict[str, list[Point]] = {}
    for row in [*(facts.get("evaluations") or []), *(facts.get("evaluations_between") or [])]:
        model = row["model"]
        if model in first_step and row["scores"]:
            # A benchmark's first metric is the one that it is ranked and compared by.
            metric = next(iter(row["scores"]))
            lines.setdefault(row["benchmark"], []).append(
                {
                    "model": model,
                    "step": first_step[model] + row["step"] if "step" in row else last_step[model],
                    "metric": metric,
                    "score": row["scores"][metric],
                    "stderr": row.get("stderr", {}).get(metric),
                    "n": row["n"],
                }
            )
    return {
        benchmark: sorted(line, key=lambda point: point["step"])
        for benchmark, line in lines.items()
        if len(line) > 1
    }


def evolution_csv(report: Report | JsonObject) -> str:
    """Return the points as CSV, one line each; only the header if there are none."""
    csv_text = StringIO()
    csv_writer = csv.writer(csv_text, lineterminator="\n")
    csv_writer.writerow(["benchmark", *_POINT_KEYS])
    for benchmark, line in evolution(report).items():
        for point in line:
            csv_writer.writerow([benchmark, *(point[key] for key in _POINT_KEYS)])
    return csv_text.getvalue()


def evolution_chart(report: Report | JsonObject) -> str:
    """Draw the points as lines with one standard error; empty if there are none."""
    lines = evolution(report)
    if not lines:
        return ""
    from openba.report.charts import Series, lines_chart

    series: list[Series] = [
        (benchmark, [(point["step"], point["score"], point["stderr"] or 0.0) for point in line])
        for benchmark, line in lines.items()
    ]
    return lines_chart("Scores over training", series, "steps of all stages so far", "score")
