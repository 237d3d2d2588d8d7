"""Cost of cleaning 1, 10 and 100 TB, predicted from two runs here: `python -m benchmarks data-cost`.

A run gives processor seconds, bytes of hashes that tasks of other shards read, and bytes on disk when the
passes end, each per byte of text. The prediction takes all three as proportional to the text; the second run,
of four times the text, says how far that holds. Nothing but the two runs here was measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import corpora
from benchmarks.data.cleaning import paper
from benchmarks.data.modern import modern
from benchmarks.figure import Figure
from openba.artifacts import Build
from openba.data.clean import passes
from openba.data.clean.corpus import make_plan
from openba.data.schema import DOCUMENTS
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe

_MB = 10**6
_TB = 10**12
_SMALL_CORPUS = 26 * _MB
_LARGE_CORPUS = 4 * _SMALL_CORPUS
_PREDICTED = (1, 10, 100)


class _Cost(NamedTuple):
    """Measured per byte of text."""

    seconds: float
    """Of one processor."""
    keys: float
    """Bytes of hashes and positions that other shards' tasks read."""
    disk: float
    """Bytes of all files of the passes, compressed text and the cleaned text among them."""


def figures() -> Iterator[Figure]:
    """Yield by chain how far costs are proportional, and the prediction for each size."""
    for name, recipe in (("paper", paper()), ("modern", modern())):
        _measure(recipe, _SMALL_CORPUS)  # loads compiled loops and tables
        small = _measure(recipe, _SMALL_CORPUS)
        large = _measure(recipe, _LARGE_CORPUS)
        growth = large.seconds / small.seconds
        comparison = f"{_SMALL_CORPUS // _MB} MB: {1 / small.seconds / _MB:.1f} MB/s"
        yield Figure(f"cost/{name}_seconds_per_byte_growth", growth, "x", 1.3, "lower", comparison, growth)
        for size in _PREDICTED:
            text_bytes = size * _TB
            comparison = "prediction"
            yield Figure(
                f"cost/{name}_{size}_tb_core_hours", text_bytes * large.seconds / 3600, "h", peer=comparison
            )
            yield Figure(f"cost/{name}_{size}_tb_keys", text_bytes * large.keys / _TB, "TB", peer=comparison)
            yield Figure(f"cost/{name}_{size}_tb_disk", text_bytes * large.disk / _TB, "TB", peer=comparison)


def _measure(recipe: CleanRecipe, corpus_bytes: int) -> _Cost:
    with tempfile.TemporaryDirectory(prefix="openba-cost-") as folder:
        root = Path(folder)
        written_bytes = corpora.write(root / "text" / DOCUMENTS, corpora.prose(), corpus_bytes)
        build = Build(root / "out", CorpusRecipe(sources={"text": recipe}), {"text": root / "text"})
        plan = make_plan(build, {"text": recipe})
        plan.folder.mkdir(parents=True)
        started = time.process_time()
        passes.run(plan, passes.in_this_process)
        seconds = time.process_time() - started
        files = [path for path in plan.folder.rglob("*") if path.is_file()]
        key_bytes = sum(path.stat().st_size for path in files if path.suffix == ".npy")
        disk_bytes = sum(path.stat().st_size for path in files)
    return _Cost(seconds / written_bytes, key_bytes / written_bytes, disk_bytes / written_bytes)
