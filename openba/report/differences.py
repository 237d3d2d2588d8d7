"""Write a page of answers side by side: each item's prompt, references, and each model's answer and verdict.

Owns the order of the items (first those that the models do not all answer alike) and how many are shown.
`openba.evaluate.compare` computes scores and tests. All text is escaped; the page has no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader

from openba.errors import UserError
from openba.evaluate.compare import compare
from openba.evaluate.results import read_results
from openba.json_types import JsonObject

SHOWN_ITEMS = 200
"""Most items of a benchmark on the page; a browser scrolls them without delay."""


def write_differences(path: Path, folders: Sequence[Path], shown_items: int = SHOWN_ITEMS) -> Path:
    """Write the page of two or more evaluations; return its path.

    Args:
        path: the HTML file.
        folders: of `openba eval`; the first is what the others are compared with.
        shown_items: most items of a benchmark; those whose answers differ come first.

    Raises:
        UserError: a folder has no results, or no benchmark was run by two of them.
    """
    model_names = _model_names(folders)
    benchmark_names = dict.fromkeys(
        benchmark for folder in folders for benchmark in read_results(folder)["benchmarks"]
    )
    comparisons = {model_names[folder]: compare(folders[0], folder) for folder in folders[1:]}
    benchmarks = []
    for benchmark in benchmark_names:
        answer_files = [(model_names[folder], folder / f"{benchmark}.parquet") for folder in folders]
        answers = {model: pq.read_table(file).to_pylist() for model, file in answer_files if file.is_file()}
        # A folder may lack the benchmark, or have been written without answers.
        if len(answers) < 2:
            continue
        # `sorted` is stable: within each of the groups items stay in the order of the data set.
        items = sorted(_items_of(answers), key=lambda item: (not item["verdicts_differ"], not item["differ"]))
        score_rows = [
            (model, next(row for row in comparison if row["benchmark"] == benchmark))
            for model, comparison in comparisons.items()
        ]
        benchmarks.append(
            {
                "name": benchmark,
                "models": list(answers),
                "scores": score_rows,
                "items": items[:shown_items],
                "count": len(items),
                "verdicts_differ": sum(item["verdicts_differ"] for item in items),
                "differ": sum(item["differ"] for item in items),
            }
        )
    if not benchmarks:
        raise UserError(f"{', '.join(map(str, folders))}: no benchmark with answers in two of them")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("differences.html").render(
        first=model_names[folders[0]], benchmarks=benchmarks
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _model_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the last part of each folder's path where it is unique, else the path."""
    last_parts = [folder.name for folder in folders]
    return {folder: folder.name if last_parts.count(folder.name) == 1 else str(folder) for folder in folders}


def _items_of(answers: dict[str, list[JsonObject]]) -> Iterator[JsonObject]:
    """Yield the items that two models or more answered."""
    rows_by_id = {model: {row["id"]: row for row in rows} for model, rows in answers.items()}
    for item_id in dict.fromkeys(row["id"] for rows in answers.values() for row in rows):
        item_answers = {model: rows[item_id] for model, rows in rows_by_id.items() if item_id in rows}
        if len(item_answers) < 2:
            continue
        first_answer = next(iter(item_answers.values()))
        prompts = {row["input"] for row in item_answers.values()}
        yield {
            "id": item_id,
            "category": first_answer["category"],
            "references": first_answer["references"],
            "prompt": first_answer["input"],
            "same_prompt": len(prompts) == 1,
            "answers": item_answers,
            "differ": len({row["answer"] for row in item_answers.values()}) > 1,
            "verdicts_differ": len({row["verdict"] for row in item_answers.values()}) > 1,
        }
