"""`openba eval`, `openba compare` and `openba judge`. Owns arguments and printing only."""

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
from openba.tokenizer.pieces_openba import MODES
from tasks.models import open_model

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Folder of a model, models:/NAME@ALIAS, or a trained step such as stage3.")
    ],
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks, by name or YAML file.")] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite of configs/suite, such as quick; can be repeated.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the benchmarks' data sets; their configs name data/eval."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the results. A second call with it continues the first.")
    ] = Path("eval"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override in every benchmark, such as items=50.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Mode token that the prompts begin with: R, S or X.")] = "S",
    workers: Annotated[
        int, typer.Option(min=1, help="Number of processes that each load the model; Ray runs more than one.")
    ] = 1,
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Pipeline that the name of a step is looked up in.")
    ] = "tiny",
    as_json: Json = False,
) -> None:
    """Evaluate a model on benchmarks. The exit code is 1 if one of them could not be run."""
    from openba.evaluate.shards import ShardMapper, map_in_process
    from openba.evaluate.suite import run_suite, select_benchmarks
    from openba.report.card import write_card
    from openba.report.paper_tables import evaluations_of, write_tables

    if prefix not in MODES:
        raise UserError(f"--prefix {prefix}: no such mode token; take one of {', '.join(MODES)}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    benchmarks = select_benchmarks(suite or [], names or [], data, overrides)
    if not benchmarks:
        raise UserError("eval: name a benchmark or a suite, such as --suite quick")
    mapper: ShardMapper = map_in_process
    if workers > 1:
        from tasks.evaluate import on_own_ray

        mapper = on_own_ray(workers)
    with open_model(model, pipeline) as (model_name, folder):
        results = run_suite(
            folder, benchmarks, out, _print_nothing if as_json else _print_result, prefix, mapper
        )
    rows = evaluations_of({"benchmarks": results}, model_name)
    written = [*write_tables(out, rows), *write_card(out, model_name, results)[:1]] if rows else []
    for file in written:
        if not as_json:
            console.print(str(file), markup=False)
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
    if any("error" in result for result in results.values()):
        raise typer.Exit(1)


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders that `openba eval` wrote; the others are compared with the first."),
    ],
    page: Annotated[
        Path | None, typer.Option(help="HTML file to write the answers to, side by side.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the scores of evaluations: difference, its 95 % interval, and a test whether it is chance."""
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
    one: Annotated[
        Path,
        typer.Argument(
            help="Folder of one evaluation; with --sheet, the folder that the blind sheet was written to."
        ),
    ],
    other: Annotated[Path | None, typer.Argument(help="Folder of the other evaluation.")] = None,
    sheets: Annotated[
        list[Path] | None, typer.Option("--sheet", help="A filled sheet to count; can be repeated.")
    ] = None,
    benchmark: Annotated[str, typer.Option(help="Benchmark whose generated answers are judged.")] = "roc",
    out: Annotated[Path, typer.Option(help="Folder to write the blind sheet and its key to.")] = Path(
        "judging"
    ),
    items: Annotated[int, typer.Option(min=1, help="Largest number of pairs on the sheet.")] = 100,
) -> None:
    """Write a blind sheet of answer pairs for annotators, or, with --sheet, count the filled sheets."""
    from openba.evaluate.judging import read_sheets, write_sheet

    if sheets:
        print(json.dumps(read_sheets(one, sheets), indent=1))
    elif other is not None:
        console.print(str(write_sheet(one, other, benchmark, out, items)), markup=False)
    else:
        raise UserError(
            "judge: give the folders of two evaluations, or the folder of a sheet and --sheet FILE"
        )


def _print_nothing(name: str, result: JsonObject) -> None:
    del name, result


def _print_result(benchmark_name: str, result: JsonObject) -> None:
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
