"""`openba eval` and `openba compare`: benchmarks on a model's folder. Owns arguments and printing only."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from openba.errors import UserError
from openba.json_types import JsonObject

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks, by name or YAML file.")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="Suites of configs/suite, such as quick.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that stands for data/eval.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; a second call goes on there.")] = Path(
        "eval"
    ),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override, of every benchmark.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Mode token of the prompts: R, S or X.")] = "S",
    workers: Annotated[int, typer.Option(min=1, help="Models at once, by Ray; shards are shared out.")] = 1,
    as_json: Json = False,
) -> None:
    """Evaluate a model; exit code 1 if a benchmark could not be run."""
    from openba.evaluate.shards import ShardMapper, map_in_process
    from openba.evaluate.suite import run_suite, select_benchmarks
    from openba.report.card import write_card
    from openba.report.paper_tables import evaluations_of, write_tables

    benchmarks = select_benchmarks(suite or [], names or [], data, overrides)
    if not benchmarks:
        raise UserError("eval: name a benchmark or a suite, such as --suite quick")
    mapper: ShardMapper = map_in_process
    if workers > 1:
        from tasks.evaluate import on_own_ray

        mapper = on_own_ray(workers)
    results = run_suite(model, benchmarks, out, _nothing if as_json else _tell, prefix, mapper)
    rows = evaluations_of({"benchmarks": results}, model.name)
    written = [*write_tables(out, rows), *write_card(out, model.name, results)[:1]] if rows else []
    for file in written:
        if not as_json:
            console.print(str(file), markup=False)
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
    if any("error" in result for result in results.values()):
        raise typer.Exit(1)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of evaluations; others against the first.")],
    page: Annotated[Path | None, typer.Option(help="Write answers side by side to this HTML file.")] = None,
    as_json: Json = False,
) -> None:
    """Scores of two or more evaluations: differences, their 95 % interval, and whether they are chance."""
    from openba.evaluate.compare import compare as rows_of
    from openba.report.differences import write_differences

    if len(folders) < 2:
        raise UserError("compare: give two folders or more, such as `openba compare results/a results/b`")
    tables = {str(other): rows_of(folders[0], other) for other in folders[1:]}
    written = write_differences(page, folders) if page is not None else None
    if as_json:
        print(json.dumps(next(iter(tables.values())) if len(tables) == 1 else tables, ensure_ascii=False))
        return
    for other, rows in tables.items():
        console.print(_comparison(str(folders[0]), other, rows))
        for row in rows:
            if row["notes"]:
                console.print(f"{row['benchmark']}: {'; '.join(row['notes'])}", markup=False)
    if written is not None:
        console.print(str(written), markup=False)


def _comparison(first_folder: str, other_folder: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    column_names = (
        "benchmark",
        "metric",
        first_folder,
        other_folder,
        "difference",
        "95 % interval",
        "p",
        "test",
        "n",
        "differs",
    )
    table = Table(*column_names, box=None)
    for row in rows:
        first_score = row["one"] or row["other"] or {}
        score_cells = [f"{row[side]['score']:.2f}" if row[side] else "not run" for side in ("one", "other")]
        test_cells = ["", "", "", ""]
        if "difference" in row:
            worse_or_better = " (less is better)" if row["lower_is_better"] else ""
            test_cells = [
                f"{row['difference']:+.2f}{worse_or_better}",
                "{:+.2f} to {:+.2f}".format(*row["interval"]),
                "" if row["p"] is None else f"{row['p']:.3g}",
                row["test"],
            ]
        item_count = str(row.get("items") or first_score.get("n", ""))
        differs = ", ".join(row.get("changed", []))
        table.add_row(
            row["benchmark"], first_score.get("metric", ""), *score_cells, *test_cells, item_count, differs
        )
    return table


def judge(
    one: Annotated[Path, typer.Argument(help="Folder of one evaluation, or, with sheets, of the judging.")],
    other: Annotated[Path | None, typer.Argument(help="Folder of the other evaluation.")] = None,
    sheets: Annotated[list[Path] | None, typer.Option("--sheet", help="A filled sheet, to count.")] = None,
    benchmark: Annotated[str, typer.Option(help="Whose generations are compared.")] = "roc",
    out: Annotated[Path, typer.Option(help="Folder of sheet and key.")] = Path("judging"),
    items: Annotated[int, typer.Option(min=1)] = 100,
) -> None:
    """Write a blind sheet for annotators from two evaluations; with --sheet, count the filled sheets."""
    from openba.evaluate.judging import read_sheets, write_sheet

    if sheets:
        print(json.dumps(read_sheets(one, sheets), indent=1))
    elif other is not None:
        console.print(str(write_sheet(one, other, benchmark, out, items)), markup=False)
    else:
        raise UserError("judge: give two evaluations to compare, or the folder of a judging and --sheet FILE")


def _nothing(name: str, result: JsonObject) -> None:
    del name, result


def _tell(benchmark_name: str, result: JsonObject) -> None:
    if "error" in result:
        console.print(f"{benchmark_name:<24} not run: {result['error']}", markup=False)
        return
    numeric_scores = {key: value for key, value in result["scores"].items() if isinstance(value, float)}
    score_text = ", ".join(
        f"{key} {value:.2f} ± {numeric_scores.get(f'{key}_stderr', 0.0):.2f}"
        for key, value in numeric_scores.items()
        if not key.endswith("_stderr")
    )
    count_text = "".join(f"; {count} {deviation}" for deviation, count in result["counts"].items())
    if "broken" in result:
        count_text += (
            f"; {result['broken']['records']} broken records left out, such as {result['broken']['first'][0]}"
        )
    console.print(
        f"{benchmark_name:<24} {score_text}  (n={result['n']}, {result['method']}{count_text})", markup=False
    )
