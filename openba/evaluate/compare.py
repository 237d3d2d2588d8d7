"""Two evaluations side by side: differences with their standard errors.

Owns the pairing of items. Where both answered the same items, the error is that of the paired
differences, which is smaller than that of two independent scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from openba.evaluate.results import read_results


def compare(one: Path, other: Path) -> list[dict[str, Any]]:
    """A row for each benchmark of either folder.

    Returns:
        `one` and `other`, scores by the first metric, None if not run; `difference`, other minus one;
        its `stderr`; `paired`; `changed`, what of the two declarations differs.

    Raises:
        UserError: a folder has no results.
    """
    return compare_results(*((read_results(folder)["benchmarks"], folder) for folder in (one, other)))


def compare_results(
    one: tuple[dict[str, Any], Path], other: tuple[dict[str, Any], Path]
) -> list[dict[str, Any]]:
    """The rows of `compare` from results by benchmark, with the folder of each one's answers."""
    results = (one[0], other[0])
    rows = []
    for name in dict.fromkeys([*results[0], *results[1]]):
        scores = [_score(found.get(name)) for found in results]
        row: dict[str, Any] = {"benchmark": name, "one": scores[0], "other": scores[1]}
        if scores[0] is not None and scores[1] is not None:
            paired = _paired(one[1] / f"{name}.parquet", other[1] / f"{name}.parquet")
            independent = (scores[0]["stderr"] ** 2 + scores[1]["stderr"] ** 2) ** 0.5
            row |= {
                "difference": round(scores[1]["score"] - scores[0]["score"], 4),
                "stderr": round(independent if paired is None else paired, 4),
                "paired": paired is not None,
                "changed": _changed(results[0][name], results[1][name]),
            }
        rows.append(row)
    return rows


def _score(result: dict[str, Any] | None) -> dict[str, Any] | None:
    if not result or "error" in result:
        return None
    metric = next(key for key in result["scores"] if key != "n")
    error = float(result["scores"].get(f"{metric}_stderr", 0.0))
    return {"metric": metric, "score": float(result["scores"][metric]), "stderr": error, "n": result["n"]}


def _changed(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between the declarations, so that the scores do not compare."""
    return [key for key in ("version", "method", "n", "licence") if one.get(key) != other.get(key)]


def _paired(one: Path, other: Path) -> float | None:
    if not (one.is_file() and other.is_file()):
        return None
    tables = [pq.read_table(path, columns=["id", "verdict"]) for path in (one, other)]
    if not tables[0]["id"].equals(tables[1]["id"]) or tables[0]["verdict"].null_count or len(tables[0]) < 2:
        return None
    difference = 100 * (tables[1]["verdict"].to_numpy() - tables[0]["verdict"].to_numpy())
    return float(np.std(difference, ddof=1) / len(difference) ** 0.5)
