"""Near duplicates: what is found of planted copies, and the speed against datatrove's MinHash steps."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import corpora
from benchmarks.data.cleaning import NOTHING, Against, clean
from benchmarks.figure import Figure
from openba.data.clean.near_duplicates import are_similar, band_keys, candidate_pairs, shingles
from openba.data.clean.text_arrays import decode
from openba.data.schema import DOCUMENTS

_SIMILARITY = 0.8
_UNIT = re.compile(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w)+")
_PIECE = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+|\W|_")
_TEXTS = 2000


def figures() -> Iterator[Figure]:
    """Yield recall and precision by language, then the speed."""
    for language in ("zh", "en"):
        yield from _planted(language)
    with tempfile.TemporaryDirectory(prefix="openba-near-") as folder:
        path = Path(folder) / "text" / DOCUMENTS
        english = tuple(pair for pair in corpora.prose() if pair[0] == "en")
        size = corpora.write(path, english) / 1e6
        recipe = NOTHING.model_copy(update={"near_dedup": True})
        against = Against(path, size, lambda out: clean(path.parent, recipe, out))
        yield from against.figures("near_dedup", "near", 8, 10)


def _planted(language: str) -> Iterator[Figure]:
    originals = [text for of, text in corpora.prose() if of == language and 150 < len(text) < 5000]
    originals = list(dict.fromkeys(originals))[:_TEXTS]
    texts = [*originals, *_copies(originals)]
    batch, _ = decode(pa.array(texts, pa.large_string()))
    of_texts = shingles(batch, 5)
    pairs = candidate_pairs(*band_keys(of_texts))
    sets = of_texts.sets(np.arange(len(texts)))
    confirmed = pairs[are_similar(sets, sets, pairs, _SIMILARITY)]
    confirmed_pairs = {(first, second) for first, second in confirmed.tolist()}
    planted = {(number, number + len(originals)) for number in range(len(originals))}
    alike = {pair for pair in planted if _jaccard(texts[pair[0]], texts[pair[1]]) >= _SIMILARITY}
    peer_text = f"exact Jaccard of Python sets: {len(alike):,} of {len(planted):,} planted copies reach 0.8"
    recall = 100 * len(confirmed_pairs & alike) / len(alike)
    yield Figure(f"data/near_recall_{language}", recall, "%", 95, "higher", peer_text)
    true = sum(_jaccard(texts[first], texts[second]) >= _SIMILARITY for first, second in confirmed_pairs)
    yield Figure(
        f"data/near_precision_{language}", 100 * true / len(confirmed_pairs), "%", 99, "higher", peer_text
    )


def _copies(texts: Sequence[str]) -> list[str]:
    """Return each text with a share of its words replaced by other words."""
    draw = random.Random(11)
    others = [word for text in texts[:200] for word in re.findall(r"\w+", text)]
    changed = []
    for text in texts:
        rate = draw.choice([0.002, 0.01, 0.02, 0.03, 0.05])
        pieces = [
            draw.choice(others)[: len(piece)] if piece.isalnum() and draw.random() < rate else piece
            for piece in _PIECE.findall(text)
        ]
        changed.append("".join(pieces))
    return changed


def _jaccard(first: str, second: str) -> float:
    one = _shingle_set(first)
    other = _shingle_set(second)
    return len(one & other) / max(len(one | other), 1)


def _shingle_set(text: str) -> set[tuple[str, ...]]:
    units = _UNIT.findall(text.lower())
    length = min(5, len(units))
    return {tuple(units[start : start + length]) for start in range(len(units) - length + 1)}
