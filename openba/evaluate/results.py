"""`results.json` of an evaluation: its name, form and reading. Written by `suite.py`.

Imports no metric's library: the flow compares results for the registry, and loads 2 s faster without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openba.errors import UserError

RESULTS = "results.json"
# `Any`: JSON whose keys depend on method, metrics and groups; `run.score_benchmark` lists them.
BenchmarkResult = dict[str, Any]
"""Result of one benchmark, or `{"error": line}`."""


def read_results(folder: Path) -> BenchmarkResult:
    """Return the contents of an evaluation's `results.json`.

    Raises:
        UserError: the file is missing.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{path}: no results; `openba eval MODEL --out {folder}` writes them")
    return json.loads(path.read_text(encoding="utf-8"))
