"""Which evaluation records stand in the training data.

Owns what of a record is looked for, the index of all records, and both directions of the question: how
much of a record is in a training set (the report, as the paper's Table 4), and whether a training document
holds a record (what a mixture drops). How texts are compared is `openba.data.matching`.

A record is looked for by its own words: the question alone, without prompt words, option letters and solved
examples, and the answer's text. A question of at least `ngram` units is there if most of its n-grams are; a
shorter one is there if all of it stands in a row and the answer's text follows close behind.

The paper compared names of data sets, since "fine-grained data contamination checking of
pre-training data is computationally prohibitive" (section 4.1, footnote 7); here the text is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.data.catalogue import corpus_files
from openba.data.matching import ANCHOR, PairIndex, Units, find
from openba.data.pairs import ASKED_FILE
from openba.data.schema import read_batches
from openba.recipes.data import HELDOUT, ContaminationRecipe

_SLASH, _LINE = (pa.scalar(text, pa.large_string()) for text in "/\n")

CLEAN, DIRTY = 0.2, 0.8
"""A record with less of its n-grams in the training data is clean, one with as much is dirty."""
_ENOUGH = 8
"""Information that a short question and its answer must have together: two a word, one a Han character."""
_SEARCHED = 16
"""Units behind a short question in which its answer may begin, beside twice those of all options."""


@dataclass
class _Keys:
    """What is looked for, record by record; a record may have several keys, any of which is enough."""

    grams: list[np.ndarray] = field(default_factory=list)
    """uint64 `[n]` of each long key, distinct."""
    long_record: list[int] = field(default_factory=list)
    firsts: list[np.ndarray] = field(default_factory=list)
    seconds: list[np.ndarray] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    short_record: list[int] = field(default_factory=list)

    def add(self, records: list[dict[str, list[str]]], first_record: int, size: int) -> None:
        """Add the records of one set."""
        texts, owners = _key_texts(records)
        keys = Units.of(pa.array(texts, pa.large_string()))
        answers = Units.of(pa.array([_first(record["answers"]) for record in records], pa.large_string()))
        options = Units.of(pa.array(["\n".join(record["answers"]) for record in records], pa.large_string()))
        grams, begins = keys.ngrams(size)
        rows = [np.unique(grams[begins[row] : begins[row + 1]]) for row in range(len(texts))]
        shared = _shared(rows, owners, len(records))
        for row, owner in enumerate(owners):
            if len(rows[row]):
                own = _without(rows[row], shared)
                self.grams.append(own if len(own) else rows[row])
                self.long_record.append(first_record + owner)
            elif (
                _information(keys, row) + _information(answers, owner) >= _ENOUGH
                and len(keys.row(row)) >= ANCHOR
            ):
                self.firsts.append(keys.row(row))
                self.seconds.append(answers.row(owner))
                self.windows.append(_SEARCHED + 2 * len(options.row(owner)))
                self.short_record.append(first_record + owner)


def _key_texts(records: list[dict[str, list[str]]]) -> tuple[list[str], list[int]]:
    """Return the texts to look for and the record of each: all that is asked, and all but its longest part.

    The longest of several parts is a passage, which may be left out of a copy.
    """
    texts, owners = [], []
    for number, record in enumerate(records):
        parts = record["question"]
        texts.append("\n".join(parts))
        owners.append(number)
        if len(parts) > 1:
            longest = max(range(len(parts)), key=lambda part: len(parts[part]))
            texts.append("\n".join(part for place, part in enumerate(parts) if place != longest))
            owners.append(number)
    return texts, owners


def _first(texts: list[str]) -> str:
    return texts[0] if texts else ""


def _shared(rows: list[np.ndarray], owners: list[int], records: int) -> np.ndarray:
    """N-grams that more than two records of a set and more than one in a hundred share: its own phrases."""
    of_record = [np.empty(0, np.uint64)] * records
    for grams, owner in zip(rows, owners, strict=True):
        of_record[owner] = np.union1d(of_record[owner], grams) if len(of_record[owner]) else grams
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *of_record]), return_counts=True)
    return values[counts > max(2, records // 100)]


def _without(grams: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """N-grams that are not in the sorted `shared`."""
    if not len(shared):
        return grams
    places = np.minimum(np.searchsorted(shared, grams), len(shared) - 1)
    return grams[shared[places] != grams]


def _information(units: Units, row: int) -> int:
    begin, end = units.begins[row], units.begins[row + 1]
    return int(end - begin + units.is_word[begin:end].sum())


@dataclass(frozen=True)
class Marks:
    """What of the index some texts hold."""

    grams: np.ndarray  # bool [n], by place in the index
    short: np.ndarray  # bool [short keys]

    def __or__(self, other: Marks) -> Marks:
        return Marks(self.grams | other.grams, self.short | other.short)


class Items:
    """Evaluation records of all sets together, ready to be looked for."""

    def __init__(self, sets: list[str], set_of: np.ndarray, keys: _Keys, size: int) -> None:
        self.sets, self.set_of, self.size = sets, set_of, size
        joined = np.concatenate([np.empty(0, np.uint64), *keys.grams])
        self.index, places = np.unique(joined, return_inverse=True)
        """uint64 `[n]`, sorted and distinct n-grams."""
        self.places = places.astype(np.int64)
        """int64 `[g]`, place in the index of each long key's n-grams, key by key."""
        self.begins = np.concatenate([[0], np.cumsum([len(grams) for grams in keys.grams])]).astype(np.int64)
        self.long_record = np.array(keys.long_record, np.int64)
        self.short_record = np.array(keys.short_record, np.int64)
        self.pairs = PairIndex(keys.firsts, keys.seconds, keys.windows)

    @classmethod
    def read(cls, folders: Mapping[str, Path], size: int) -> Items:
        """Read what the held-out records of tasks ask and answer."""
        keys, set_of = _Keys(), [np.empty(0, np.int32)]
        for number, folder in enumerate(folders.values()):
            records = pq.read_table(folder / ASKED_FILE).to_pylist()
            keys.add(records, sum(map(len, set_of)), size)
            set_of.append(np.full(len(records), number, np.int32))
        return cls(list(folders), np.concatenate(set_of), keys, size)

    def nothing(self) -> Marks:
        """Marks of no text."""
        return Marks(np.zeros(len(self.index), bool), np.zeros(len(self.short_record), bool))

    def marks(self, column: pa.Array) -> Marks:
        """What a column of texts holds of the index."""
        marks = self.nothing()
        units = Units.of(column)
        places = find(units.ngrams(self.size)[0], self.index)
        marks.grams[places[places >= 0]] = True
        marks.short[self.pairs.find(units)[0]] = True
        return marks

    def shares(self, marks: Marks) -> np.ndarray:
        """How much of each record is marked, of its best key; NaN for a record that is too short to tell."""
        share = np.full(len(self.set_of), np.nan)
        sums = np.concatenate([[0], np.cumsum(marks.grams[self.places])])
        long = np.diff(sums[self.begins]) / np.maximum(1, np.diff(self.begins))
        np.fmax.at(share, self.long_record, long)
        np.fmax.at(share, self.short_record, marks.short.astype(float))
        return share


class Holder:
    """Says which documents hold an evaluation record."""

    def __init__(self, items: Items, threshold: float = DIRTY) -> None:
        self.items, self.threshold = items, threshold
        # Keys by n-gram: the inverse of `places`.
        order = np.argsort(items.places, kind="stable")
        self.key = np.repeat(np.arange(len(items.begins) - 1), np.diff(items.begins))[order]
        self.starts = np.searchsorted(items.places[order], np.arange(len(items.index) + 1))

    def __call__(self, batch: pa.RecordBatch) -> np.ndarray:
        """Rows of a batch with a column `text` -> bool: the row holds a record."""
        held = np.zeros(batch.num_rows, bool)
        held[self.found(batch["text"])[0]] = True
        return held

    def found(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return (row, record) of each record that a row of the column holds."""
        units = Units.of(column)
        short, rows = self.items.pairs.find(units)
        pairs = [np.stack([rows, self.items.short_record[short]])]
        grams, begins = units.ngrams(self.items.size)
        places = find(grams, self.items.index)
        if (places >= 0).any():
            rows = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
            hits = np.unique(np.stack([rows[places >= 0], places[places >= 0]]), axis=1)
            sizes = np.diff(self.starts)[hits[1]]
            owners = np.concatenate([self.key[self.starts[p] : self.starts[p + 1]] for p in hits[1]])
            keys, counts = np.unique(
                np.stack([np.repeat(hits[0], sizes), owners]), axis=1, return_counts=True
            )
            enough = counts >= self.threshold * np.diff(self.items.begins)[keys[1]]
            pairs.append(np.stack([keys[0][enough], self.items.long_record[keys[1][enough]]]))
        row, record = np.unique(np.concatenate(pairs, axis=1), axis=1)
        return row, record


def build(build: Build) -> dict[str, Any]:
    """Step `contamination`: every evaluation set against every source and task that is trained on.

    Returns:
        Facts: `sets`, a row a set with its records counted as too short, clean, partly, dirty, and
        the training sets with the number of records that are not clean in them.
    """
    recipe: ContaminationRecipe = build.recipe
    items = Items.read({name: build.inputs[f"task-{name}"] for name in recipe.sets}, recipe.ngram)
    seen: dict[str, Marks] = {}
    for name, column in _training(build, recipe):
        seen[name] = seen.get(name, items.nothing()) | items.marks(column)
    shares = {name: items.shares(marks) for name, marks in seen.items()}
    together = items.nothing()
    for marks in seen.values():
        together = together | marks
    whole = items.shares(together)
    columns = {"set": [items.sets[k] for k in items.set_of], "all": whole}
    columns |= {f"in {name}": share for name, share in shares.items()}  # a source may be called `all`
    pq.write_table(pa.table(columns), build.out / "records.parquet", compression="zstd")
    return {
        "ngram": recipe.ngram,
        "trained_on": sorted(seen),
        "sets": [_row(items, number, whole, shares) for number in range(len(items.sets))],
    }


def _row(items: Items, number: int, whole: np.ndarray, shares: Mapping[str, np.ndarray]) -> dict[str, Any]:
    own = items.set_of == number
    share = whole[own]
    overlaps = {name: int((found[own] >= CLEAN).sum()) for name, found in sorted(shares.items())}
    return {
        "set": items.sets[number],
        "records": int(own.sum()),
        "too_short": int(np.isnan(share).sum()),
        "clean": int((share < CLEAN).sum()),
        "partly": int(((share >= CLEAN) & (share < DIRTY)).sum()),
        "dirty": int((share >= DIRTY).sum()),
        "overlaps": {name: count for name, count in overlaps.items() if count},
    }


def _training(build: Build, recipe: ContaminationRecipe) -> Iterator[tuple[str, pa.Array]]:
    """Texts that are trained on, by source or task: documents of the mixture, pairs of the tasks."""
    used = _used_documents(build.inputs["mixture"])
    for path in corpus_files(build.inputs["corpus"]):
        for batch in read_batches(path, 1000, ["source", "id", "text"]):
            chosen = batch.filter(pc.is_in(_keys(batch), value_set=used))
            for source in chosen["source"].unique().to_pylist():
                yield source, chosen.filter(pc.equal(chosen["source"], source))["text"]
    for name in recipe.tasks:
        yield f"task {name}", _records(build.inputs[f"task-{name}"] / "train.parquet")


def _used_documents(mixture: Path) -> pa.Array:
    files = sorted(f for f in mixture.glob("*/documents.parquet") if f.parent.name != HELDOUT)
    tables = [pq.read_table(file, columns=["source", "id"]) for file in files]
    return pa.concat_arrays([_keys(batch) for table in tables for batch in table.to_batches()]).unique()


def _keys(batch: pa.RecordBatch) -> pa.Array:
    return pc.binary_join_element_wise(
        batch["source"].cast(pa.large_string()), batch["id"].cast(pa.large_string()), _SLASH
    )


def _records(path: Path) -> pa.Array:
    table = pq.read_table(path, columns=["input", "target"]).combine_chunks()
    return pa.concat_arrays(
        [
            pc.binary_join_element_wise(
                batch["input"].cast(pa.large_string()), batch["target"].cast(pa.large_string()), _LINE
            )
            for batch in table.to_batches()
        ]
        or [pa.array([], pa.large_string())]
    )
