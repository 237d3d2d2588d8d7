"""One page about a cleaned corpus: what is in it, what was removed and why, with examples.

Reads the output of the step `clean` batch by batch. The page holds no text but the examples of the step's
facts, in which private values are masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from openba.data.catalogue import corpus_files
from openba.data.clean.corpus import REMOVED
from openba.data.clean.examples import Example
from openba.data.schema import read_batches
from openba.report.schema import FunnelRow

_BATCH = 10_000
_LENGTH_LIMITS = (100, 300, 1000, 3000, 10_000, 30_000)
"""Characters at which a column of the histogram of lengths ends."""
_SHARE_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of letters at which a column of that histogram ends."""
_CLUSTERS = 10
_COPY_RULES = ("duplicate_document", "near_duplicate")


class SourceRow(NamedTuple):
    """A source's documents after cleaning."""

    source: str
    language: str
    documents: int
    bytes: int
    lengths: list[int]
    """Documents by length in characters."""
    letters: list[int]
    """Documents by the share of letters and Han characters in the text without white space."""


class RuleRow(NamedTuple):
    """Removals of a rule."""

    stage: str
    rule: str
    spans: int
    documents: int
    characters: int


class ClusterRow(NamedTuple):
    """A document that stayed, with the copies and near copies that went in its favour."""

    survivor: str
    rule: str
    copies: int


def render(name: str, folder: Path, facts: Mapping[str, Any]) -> str:
    """Return the page as HTML that loads nothing from elsewhere.

    Args:
        name: of the pipeline.
        folder: output of the step `clean`.
        facts: of the step (`openba.data.clean.corpus.Facts`).
    """
    rules, clusters = removals(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["percent"] = lambda share: f"{100 * share:.2f} %"
    funnel: Sequence[FunnelRow] = facts["funnel"]
    examples: Mapping[str, Sequence[Example]] = facts["examples"]
    return environment.get_template("corpus.html").render(
        name=name,
        sources=sources(folder),
        length_limits=_LENGTH_LIMITS,
        share_limits=_SHARE_LIMITS,
        funnel=funnel,
        rules=rules,
        clusters=clusters,
        examples=examples,
        unreadable=facts["unreadable"],
    )


def sources(folder: Path) -> list[SourceRow]:
    """Return a row for each source and language, in the order of the sources' names."""
    document_counts: Counter[tuple[str, str]] = Counter()
    text_sizes: Counter[tuple[str, str]] = Counter()
    lengths: dict[tuple[str, str], np.ndarray] = {}
    letters: dict[tuple[str, str], np.ndarray] = {}
    for path in corpus_files(folder):
        for batch in read_batches(path, _BATCH, ["source", "language", "text"]):
            keys = list(zip(batch["source"].to_pylist(), batch["language"].to_pylist(), strict=True))
            for key in set(keys):
                chosen = batch["text"].filter(pa.array([key == other for other in keys]))
                document_counts[key] += len(chosen)
                text_sizes[key] += pc.sum(pc.binary_length(chosen)).as_py() or 0
                lengths[key] = lengths.get(key, 0) + _histogram(_characters(chosen), _LENGTH_LIMITS)
                letters[key] = letters.get(key, 0) + _histogram(_letter_shares(chosen), _SHARE_LIMITS)
    return [
        SourceRow(*key, document_counts[key], text_sizes[key], lengths[key].tolist(), letters[key].tolist())
        for key in sorted(document_counts)
    ]


def removals(folder: Path) -> tuple[list[RuleRow], list[ClusterRow]]:
    """Return what each rule removed, most first, and the largest clusters of copies."""
    span_counts: Counter[tuple[str, str]] = Counter()
    character_counts: Counter[tuple[str, str]] = Counter()
    document_names: dict[tuple[str, str], set[str]] = {}
    survivor_counts: Counter[tuple[str, str]] = Counter()
    for batch in pq.ParquetFile(folder / f"{REMOVED}.parquet").iter_batches(_BATCH):
        table = pa.Table.from_batches([batch])
        table = table.append_column("characters", pc.subtract(table["end"], table["start"]))
        table = table.append_column("name", pc.binary_join_element_wise(table["source"], table["id"], "/"))
        grouped = table.group_by(["stage", "rule"]).aggregate(
            [("characters", "sum"), ("name", "count"), ("name", "distinct")]
        )
        for row in grouped.to_pylist():
            key = (row["stage"], row["rule"])
            span_counts[key] += row["name_count"]
            character_counts[key] += row["characters_sum"]
            document_names.setdefault(key, set()).update(row["name_distinct"])
        copies = table.filter(pc.is_in(table["rule"], pa.array(_COPY_RULES)))
        for row in copies.group_by(["survivor", "rule"]).aggregate([([], "count_all")]).to_pylist():
            survivor_counts[row["survivor"], row["rule"]] += row["count_all"]
    rules = [
        RuleRow(*key, span_counts[key], len(document_names[key]), character_counts[key])
        for key in sorted(span_counts, key=lambda key: (-span_counts[key], key))
    ]
    largest = sorted(survivor_counts, key=lambda key: (-survivor_counts[key], key))[:_CLUSTERS]
    return rules, [ClusterRow(*key, survivor_counts[key]) for key in largest]


def _characters(texts: pa.Array) -> np.ndarray:
    return pc.utf8_length(texts).to_numpy(zero_copy_only=False)


def _letter_shares(texts: pa.Array) -> np.ndarray:
    """Return the share of letters among the characters that are no white space, float `[texts]`."""
    visible = _characters(pc.replace_substring_regex(texts, r"\s", ""))
    letters = _characters(pc.replace_substring_regex(texts, r"\PL", ""))
    return letters / np.maximum(visible, 1)


def _histogram(values: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Return how many values lie below each limit and above the one before, and above the last."""
    return np.bincount(np.searchsorted(limits, values, side="right"), minlength=len(limits) + 1)
