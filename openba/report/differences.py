"""A page of answers side by side: each item's prompt, right answers, and what each model wrote and got.

Owns which items stand first (those that the models do not all answer alike) and how many are shown. Scores
and tests are `openba.evaluate.compare`'s; text of models and data is escaped, and the page runs no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader

from openba.errors import UserError
from openba.evaluate.compare import compare
from openba.evaluate.results import read_results

SHOWN = 200
"""Items of a benchmark on the page, at most."""


def write_differences(path: Path, folders: Sequence[Path], shown: int = SHOWN) -> Path:
    """Write the page of two or more evaluations.

    Args:
        path: the HTML file.
        folders: of `openba eval`; the first is what the others are compared with.
        shown: items of a benchmark, at most; those that differ come first.

    Raises:
        UserError: a folder has no results, or no benchmark was run by two of them.
    """
    names = _names(folders)
    names_of_benchmarks = dict.fromkeys(
        name for folder in folders for name in read_results(folder)["benchmarks"]
    )
    rows = {names[folder]: compare(folders[0], folder) for folder in folders[1:]}
    benchmarks = []
    for name in names_of_benchmarks:
        files = [(names[folder], folder / f"{name}.parquet") for folder in folders]
        answered = {model: pq.read_table(file).to_pylist() for model, file in files if file.is_file()}
        if len(answered) < 2:
            continue
        items = sorted(_items(answered), key=lambda item: (not item["verdicts_differ"], not item["differ"]))
        scores = [(model, next(row for row in of if row["benchmark"] == name)) for model, of in rows.items()]
        benchmarks.append(
            {
                "name": name,
                "models": list(answered),
                "scores": scores,
                "items": items[:shown],
                "count": len(items),
                "verdicts_differ": sum(item["verdicts_differ"] for item in items),
                "differ": sum(item["differ"] for item in items),
            }
        )
    if not benchmarks:
        raise UserError(f"{', '.join(map(str, folders))}: no benchmark with answers in two of them")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("differences.html").render(first=names[folders[0]], benchmarks=benchmarks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Short names where the folders' last parts tell them apart, else their paths."""
    short = [folder.name for folder in folders]
    return {folder: folder.name if short.count(folder.name) == 1 else str(folder) for folder in folders}


def _items(answered: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Items that two models or more answered, in the order of the first that has each."""
    by_id = {model: {row["id"]: row for row in rows} for model, rows in answered.items()}
    for identifier in dict.fromkeys(row["id"] for rows in answered.values() for row in rows):
        given = {model: rows[identifier] for model, rows in by_id.items() if identifier in rows}
        if len(given) < 2:
            continue
        first = next(iter(given.values()))
        prompts = {row["input"] for row in given.values()}
        yield {
            "id": identifier,
            "category": first["category"],
            "references": first["references"],
            "prompt": first["input"],
            "same_prompt": len(prompts) == 1,
            "answers": given,
            "differ": len({row["answer"] for row in given.values()}) > 1,
            "verdicts_differ": len({row["verdict"] for row in given.values()}) > 1,
        }
