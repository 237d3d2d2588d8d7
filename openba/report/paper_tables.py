"""The paper's tables with ours beside them: from evaluations to rows, CSV files and a page of their own.

Owns which score of ours stands beside which of the paper's. The paper's are `paper_results`'s; what was not
run stays None and reads "not run", never 0, and a mean with a part missing is not a mean.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader

from openba.report.paper_results import TABLES, Line, PaperTable

Cell = dict[str, Any]
"""`score`, `stderr` and `n` of one model; None where it was not run."""


def paper_tables(evaluations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every table; one that no evaluation is part of has no models.

    Args:
        evaluations: `openba.report.schema.Evaluation`, with `groups` where a benchmark has them.

    Returns:
        For each table `number`, `title`, `note`, `models`, and `lines` of `head`, `openba`, `best`,
        `best_model`, `lower`, `method` and `ours`: model -> cell or None.
    """
    results = {(row["model"], row["benchmark"]): row for row in evaluations}
    tables = []
    for table in TABLES:
        names = {line.benchmark for line in table.lines}
        models = list(dict.fromkeys(model for model, benchmark in results if benchmark in names))
        tables.append(_table(table, models, results))
    return tables


def evaluations_of(results: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """The rows of one `results.json` of `openba eval`; benchmarks that could not be run are left out."""
    return [
        evaluation_row(model, name, result)
        for name, result in results["benchmarks"].items()
        if "error" not in result
    ]


def evaluation_row(model: str, name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One benchmark's result in the report's form: scores apart from their errors and signatures."""
    kept = {key: result.get(key) for key in ("language", "method", "paper", "n", "samples")}
    counts = dict(result.get("counts") or {})
    if "broken" in result:
        counts["broken records left out"] = result["broken"]["records"]
    signatures = [str(v) for k, v in result["scores"].items() if k.endswith("_signature")]
    return {
        "model": model,
        "benchmark": name,
        **kept,
        "counts": counts,
        **numbers_and_errors(result["scores"]),
        "signature": " ".join(signatures),
        "groups": result.get("groups", {}),
    }


def numbers_and_errors(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """`scores` and `stderr`: metric -> value, of a scorer's result."""
    numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
    return {
        "scores": {key: value for key, value in numbers.items() if not key.endswith("_stderr")},
        "stderr": {k.removesuffix("_stderr"): v for k, v in numbers.items() if k.endswith("_stderr")},
    }


def table_csv(table: Mapping[str, Any]) -> str:
    """A line a column of the paper's table; an empty field is "not run"."""
    file = StringIO()
    write = csv.writer(file, lineterminator="\n")
    ours = [f"{model} {what}" for model in table["models"] for what in ("score", "stderr", "n")]
    write.writerow(["table", "column", "paper OpenBA", "paper best other", "best other is", *ours])
    for line in table["lines"]:
        cells = [line["ours"][model] or {} for model in table["models"]]
        values = [cell.get(key) for cell in cells for key in ("score", "stderr", "n")]
        write.writerow(
            [table["number"], line["head"], line["openba"], line["best"], line["best_model"], *values]
        )
    return file.getvalue()


def write_tables(folder: Path, evaluations: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Write `table-N.csv` for each table that was run and `tables.html` with all; returns the files."""
    tables = paper_tables(evaluations)
    files = {f"table-{table['number']}.csv": table_csv(table) for table in tables if table["models"]}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("tables.html").render(tables=tables, whole_page=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**files, "tables.html": page}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in (*files, "tables.html")]


def _table(table: PaperTable, models: list[str], results: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    cells = {model: _cells(table, model, results) for model in models}
    lines = []
    for line in table.lines:
        row: Mapping[str, Any] = next(
            (results[m, line.benchmark] for m in models if (m, line.benchmark) in results), {}
        )
        lines.append(
            {
                "head": line.head,
                "openba": line.openba,
                "best": line.best,
                "best_model": line.best_model,
                "lower": line.lower,
                "method": row.get("method", ""),
                "ours": {model: cells[model][line.head] for model in models},
            }
        )
    return {
        "number": table.number,
        "title": table.title,
        "note": table.note,
        "models": models,
        "lines": lines,
    }


def _cells(table: PaperTable, model: str, results: Mapping[tuple[str, str], Any]) -> dict[str, Cell | None]:
    cells: dict[str, Cell | None] = {}
    for line in table.lines:
        cells[line.head] = (
            _mean(line, cells) if line.mean_of else _cell(line, results.get((model, line.benchmark)))
        )
    return cells


def _cell(line: Line, row: Mapping[str, Any] | None) -> Cell | None:
    if row is None:
        return None
    if line.group is not None:
        group = row["groups"].get(line.group, {})
        return {key: group.get(key) for key in ("score", "stderr", "n")} if "score" in group else None
    if line.metric not in row["scores"]:
        return None
    return {"score": row["scores"][line.metric], "stderr": row["stderr"].get(line.metric), "n": row["n"]}


def _mean(line: Line, cells: Mapping[str, Cell | None]) -> Cell | None:
    parts = [[cells[head] for head in part] for part in line.mean_of]
    if any(cell is None for part in parts for cell in part):
        return None
    scores = [fmean(cell["score"] for cell in part if cell) for part in parts]
    return {"score": round(fmean(scores), 4), "stderr": None, "n": None}
