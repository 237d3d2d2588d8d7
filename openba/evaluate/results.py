"""`results.json` of an evaluated folder: its name and reading. `suite.py` writes it.

Imports no metric's library: the flow, which compares results for the registry, loads in 2 s less without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openba.errors import UserError

RESULTS = "results.json"


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of an evaluation.

    Raises:
        UserError: it is not there.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{path}: no results; `openba eval MODEL --out {folder}` writes them")
    return json.loads(path.read_text(encoding="utf-8"))
