"""Quality rules: verdicts and speed against datatrove's filters on the same English text.

Text: news, reference documentation, code of the standard library and the shared English sets, pages of the
web with their tags taken out among them. Speed is of one process; ours begins without any word in memory.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import corpora
from benchmarks.data import peer
from benchmarks.figure import Figure
from openba.data.clean import edit_matrix
from openba.data.clean.filter import Filter
from openba.data.clean.markup import Markup
from openba.data.clean.quality import words
from openba.data.clean.quality.c4 import C4Lines
from openba.data.clean.quality.fineweb import FineWebQuality
from openba.data.clean.quality.gopher import GopherQuality, GopherRepetition
from openba.data.clean.text_arrays import Texts, decode
from openba.data.samples import READERS

_MB = 1e6
_FILTERS: tuple[Filter, ...] = (GopherRepetition(), GopherQuality(), C4Lines(), FineWebQuality())
_COMPARED_CHARACTERS = 1_500_000
"""The peer does some 0.2 MB/s for all filters together."""
_LONGEST = 50_000


def figures() -> Iterator[Figure]:
    """Yield differing verdicts of each filter, and the speed of all together."""
    texts = _texts()
    compared = _sample(texts)
    peer_results = _peer(compared)
    batch = _decode(compared)
    is_chinese = words.find_chinese(batch)
    for rules in _FILTERS:
        if peer_results is None:
            break
        ours = edit_matrix.apply(batch, rules.find(batch))
        differing = sum(
            int(_lines(ours.text(row)) != _lines(left))
            for row, left in enumerate(peer_results[rules.name]["left"])
            if not is_chinese[row]
        )
        name = f"data/quality_{rules.name}: documents with another verdict or text, of {len(compared):,}"
        yield Figure(name, differing, "", 0, peer="datatrove")
    everything = _decode(texts)
    size = sum(len(text.encode()) for text in texts) / _MB
    yield Figure(f"data/quality_rules, first {size:.0f} MB", size / _seconds(everything), "MB/s")
    speed = size / statistics.median(_seconds(everything, is_warm=True) for _ in range(3))
    if peer_results is None:
        yield Figure("data/quality_rules", speed, "MB/s", peer=peer.ABSENT)
        return
    compared_size = sum(len(text.encode()) for text in compared) / _MB
    other = compared_size / sum(peer_results[rules.name]["seconds"] for rules in _FILTERS)
    peer_text = f"datatrove, the same four filters: {other:.2f} MB/s"
    yield Figure("data/quality_rules", speed, "MB/s", None, "higher", peer_text, speed / other)
    yield Figure(
        "data/quality_rules_against_datatrove", speed / other, "x", 15, "higher", peer_text, speed / other
    )


def _texts() -> list[str]:
    texts = [text for language, text in corpora.prose() if language == "en"]
    for reader in ("language_reference", "stdlib_functions"):
        texts += [text for _, text, _ in READERS["python"][reader]()]
    for language, page in corpora.pages():
        if language == "en":
            batch = _decode([page])
            texts.append(edit_matrix.apply(batch, Markup().find(batch)).text(0))
    return [text[:_LONGEST] for text in texts if text.strip()]


def _sample(texts: list[str]) -> list[str]:
    """Return every n-th text, so many that the peer takes a minute."""
    step = max(1, sum(map(len, texts)) // _COMPARED_CHARACTERS)
    return texts[::step]


def _decode(texts: list[str]) -> Texts:
    return decode(pa.array(texts, pa.large_string()))[0]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _peer(texts: list[str]) -> dict[str, dict[str, Any]] | None:
    with tempfile.TemporaryDirectory(prefix="openba-quality-") as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
        # Filter -> `left`, the text of each document, and `seconds`.
        return peer.answer("peer_quality.py", str(path))


def _seconds(batch: Texts, is_warm: bool = False) -> float:
    """Return CPU seconds of all filters, one after the other as in the step."""
    for rules in _FILTERS:
        rules.find(_decode(["Loaded first."]))
    if not is_warm:
        words.forget()
    started = time.process_time()
    for rules in _FILTERS:
        rules.find(batch)
    return time.process_time() - started
