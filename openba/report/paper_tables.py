"""The paper's Tables 6 to 15 with our scores beside the paper's, as rows, CSV files and a page.

Owns which of our scores stands beside which of the paper's; `paper_results` has the paper's. A benchmark that
was not run is None here and "not run" on the page, never 0, and a mean with a part missing is None too.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader

from openba.json_types import JsonObject
from openba.report.paper_results import TABLES, Line, PaperTable

Cell = JsonObject
"""`score`, `stderr` and `n` of one model on one line of a table."""
_CELL_KEYS = ("score", "stderr", "n")


def paper_tables(evaluations: Iterable[Mapping[str, object]]) -> list[JsonObject]:
    """Return every table of the paper; one without an evaluation of ours has no models.

    Args:
        evaluations: `openba.report.schema.Evaluation`, with `groups` where a benchmark has them.

    Returns:
        For each table `number`, `title`, `note`, `models`, and `lines` of `head`, `openba`, `best`,
        `best_model`, `lower`, `method` and `ours`: model -> cell or None.
    """
    results = {(str(row["model"]), str(row["benchmark"])): dict(row) for row in evaluations}
    tables = []
    for table in TABLES:
        benchmarks_of_table = {line.benchmark for line in table.lines}
        models = list(
            dict.fromkeys(model for model, benchmark in results if benchmark in benchmarks_of_table)
        )
        tables.append(_filled_table(table, models, results))
    return tables


def evaluations_of(results: JsonObject, model: str) -> list[JsonObject]:
    """Return the rows of one `results.json` of `openba eval`, without benchmarks that could not be run."""
    return [
        evaluation_row(model, benchmark, result)
        for benchmark, result in results["benchmarks"].items()
        if "error" not in result
    ]


def evaluation_row(model: str, benchmark: str, result: JsonObject) -> JsonObject:
    """Return one benchmark's result in the report's form: scores apart from their errors and signatures."""
    copied_fields = {key: result.get(key) for key in ("language", "method", "paper", "n", "samples")}
    counts = dict(result.get("counts") or {})
    if "broken" in result:
        counts["broken records left out"] = result["broken"]["records"]
    signatures = [str(value) for key, value in result["scores"].items() if key.endswith("_signature")]
    return {
        "model": model,
        "benchmark": benchmark,
        **copied_fields,
        "counts": counts,
        **numbers_and_errors(result["scores"]),
        "signature": " ".join(signatures),
        "groups": result.get("groups", {}),
    }


def numbers_and_errors(scores: JsonObject) -> dict[str, dict[str, float]]:
    """Split a scorer's result into `scores` and `stderr`, each metric -> value."""
    numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
    return {
        "scores": {key: value for key, value in numbers.items() if not key.endswith("_stderr")},
        "stderr": {
            key.removesuffix("_stderr"): value for key, value in numbers.items() if key.endswith("_stderr")
        },
    }


def table_csv(table: JsonObject) -> str:
    """Return one line for each column of the paper's table; an empty field means "not run"."""
    csv_text = StringIO()
    csv_writer = csv.writer(csv_text, lineterminator="\n")
    our_columns = [f"{model} {key}" for model in table["models"] for key in _CELL_KEYS]
    csv_writer.writerow(
        ["table", "column", "paper OpenBA", "paper best other", "best other is", *our_columns]
    )
    for line in table["lines"]:
        cells = [line["ours"][model] or {} for model in table["models"]]
        our_values = [cell.get(key) for cell in cells for key in _CELL_KEYS]
        csv_writer.writerow(
            [table["number"], line["head"], line["openba"], line["best"], line["best_model"], *our_values]
        )
    return csv_text.getvalue()


def write_tables(folder: Path, evaluations: Iterable[Mapping[str, object]]) -> list[Path]:
    """Write `table-N.csv` for each table that was run and `tables.html` with all; return the files."""
    tables = paper_tables(evaluations)
    files = {f"table-{table['number']}.csv": table_csv(table) for table in tables if table["models"]}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("tables.html").render(tables=tables, whole_page=True)
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, text in {**files, "tables.html": page}.items():
        (folder / file_name).write_text(text, encoding="utf-8")
    return [folder / file_name for file_name in (*files, "tables.html")]


def _filled_table(
    table: PaperTable, models: list[str], results: Mapping[tuple[str, str], JsonObject]
) -> JsonObject:
    cells = {model: _cells_of_model(table, model, results) for model in models}
    lines = []
    for line in table.lines:
        # All models answer a benchmark by one method, so the first result names it.
        first_result: JsonObject = next(
            (results[model, line.benchmark] for model in models if (model, line.benchmark) in results), {}
        )
        lines.append(
            {
                "head": line.head,
                "openba": line.openba,
                "best": line.best,
                "best_model": line.best_model,
                "lower": line.lower,
                "method": first_result.get("method", ""),
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


def _cells_of_model(
    table: PaperTable, model: str, results: Mapping[tuple[str, str], JsonObject]
) -> dict[str, Cell | None]:
    cells: dict[str, Cell | None] = {}
    for line in table.lines:
        if line.mean_of:
            cells[line.head] = _mean_cell(line, cells)
        else:
            cells[line.head] = _benchmark_cell(line, results.get((model, line.benchmark)))
    return cells


def _benchmark_cell(line: Line, row: JsonObject | None) -> Cell | None:
    if row is None:
        return None
    if line.group is not None:
        group = row["groups"].get(line.group, {})
        return {key: group.get(key) for key in _CELL_KEYS} if "score" in group else None
    if line.metric not in row["scores"]:
        return None
    return {"score": row["scores"][line.metric], "stderr": row["stderr"].get(line.metric), "n": row["n"]}


def _mean_cell(line: Line, cells: Mapping[str, Cell | None]) -> Cell | None:
    cell_groups = [[cells[head] for head in heads] for heads in line.mean_of]
    if any(cell is None for group in cell_groups for cell in group):
        return None
    group_means = [fmean(cell["score"] for cell in group if cell) for group in cell_groups]
    # Beyond four digits a mean of printed figures is the noise of binary fractions.
    return {"score": round(fmean(group_means), 4), "stderr": None, "n": None}
