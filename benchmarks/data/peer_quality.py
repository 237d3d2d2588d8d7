"""datatrove's C4 and Gopher filters over the same texts: `python peer_quality.py TEXTS`, a JSON line a text.

Runs in an environment of its own (`peer.py`) and imports nothing of openba. Prints a JSON object: for each
filter CPU seconds and, per text, an empty string if it is removed and what is left of it otherwise.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

_FILTERS = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}


def _left(chosen: Any, text: str) -> str:
    document = Document(text=text, id="")
    verdict = chosen.filter(document)
    is_kept = verdict if isinstance(verdict, bool) else verdict[0]
    return document.text if is_kept else ""


if __name__ == "__main__":
    texts = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    results = {}
    for name, filter_class in _FILTERS.items():
        chosen = filter_class()
        _left(chosen, "Loaded before the clock starts. " * 30)
        started = time.process_time()
        left = [_left(chosen, text) for text in texts]
        results[name] = {"seconds": time.process_time() - started, "left": left}
    print(json.dumps(results))
