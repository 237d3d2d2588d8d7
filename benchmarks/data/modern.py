"""The chain of `configs/clean/modern.yaml`: speed against datatrove's equivalent, memory, and equal bytes.

Speed is of English text, of which both apply the same rules. The peer's equivalent is language, Gopher, C4
and FineWeb filters, PII and MinHash; it has no normalisation, private numbers, markup or lineage. Memory and
equal bytes are of the text of `benchmarks.corpora` in copies that differ in every sentence.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import corpora
from benchmarks.data import scale
from benchmarks.data.cleaning import Against, clean
from benchmarks.figure import Figure
from openba.config import CONFIGS, load
from openba.data.clean import passes
from openba.data.schema import DOCUMENTS
from openba.recipes.clean import CleanRecipe

_MB = 10**6
_SMALL_CORPUS = 64 * _MB
_LARGE_CORPUS = 512 * _MB
_COMPARED_CORPUS = 100 * _MB
"""Three shards of 32 MiB, so that workers have something to share."""
_WORKERS = (1, 2, 7)


def modern() -> CleanRecipe:
    """Return the filters of the recipe of today, as shipped."""
    return load(CONFIGS / "clean" / "modern.yaml", CleanRecipe)


def figures() -> Iterator[Figure]:
    """Yield speed, differing outputs and growth of memory."""
    with tempfile.TemporaryDirectory(prefix="openba-modern-") as folder:
        path = Path(folder) / "text" / DOCUMENTS
        english = tuple(pair for pair in corpora.prose() if pair[0] == "en")[
            ::4
        ]  # the peer takes a minute a MB
        size = corpora.write(path, english) / _MB
        chain = Against(path, size, lambda out: clean(path.parent, modern(), out))
        yield from chain.figures("modern_chain", "modern", None, 5)
    yield workers(_COMPARED_CORPUS)
    yield scale.memory(_SMALL_CORPUS, _LARGE_CORPUS, modern())


def workers(corpus_bytes: int) -> Figure:
    """Count the outputs of several numbers of processes that differ from the first in a byte of a file."""
    digests = []
    with tempfile.TemporaryDirectory(prefix="openba-modern-") as folder:
        root = Path(folder)
        written_bytes = corpora.write(root / "text" / DOCUMENTS, corpora.prose(), corpus_bytes)
        for worker_count in _WORKERS:
            out = root / str(worker_count)
            with passes.Processes(worker_count) as pool:
                clean(root / "text", modern(), out, pool)
            state = hashlib.sha256()
            for file in sorted(path for path in out.rglob("*") if path.is_file()):
                state.update(file.relative_to(out).as_posix().encode() + file.read_bytes())
            digests.append(state.hexdigest())
    names = ", ".join(map(str, _WORKERS))
    differing = sum(digest != digests[0] for digest in digests)
    comparison = f"{names} processes, {written_bytes / _MB:.0f} MB"
    return Figure("data/modern_workers_that_differ", differing, "", 0, peer=comparison)
