"""Find evaluation records in the training data, by n-grams of `openba.data.matching`.

Two uses: how much of each record occurs in each training set (the report, as the paper's Table 4), and which
training documents contain a record (the mixture drops them).

A record is searched by its own words: the question alone, without prompt words, option letters and solved
examples, and the answer's text. A question of at least `ngram` units occurs if most of its n-grams do; a
shorter one if all of its units occur in order and the answer's text follows closely.

The paper compared names of data sets, since "fine-grained data contamination checking of
pre-training data is computationally prohibitive" (section 4.1, footnote 7); here the text is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

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

CLEAN = 0.2
"""Share of n-grams in the training data below which a record is clean."""
DIRTY = 0.8
"""Share of n-grams in the training data from which on a record is dirty."""
# Information that a short question and its answer must have together: two per word, one per Han character.
# Shorter ones would match by chance.
_MIN_INFORMATION = 8
# Units behind a short question within which its answer must begin, beside twice the units of all options.
_ANSWER_WINDOW = 16
Record = dict[str, list[str]]
"""`question`: its parts; `answers`: the right answer, then all options. See `pairs.ASKED`."""


@dataclass
class _Keys:
    """Search keys of all records; a record may have several, any of which is sufficient."""

    grams: list[np.ndarray] = field(default_factory=list)
    """Distinct n-grams of each long key, uint64 `[n-grams]`."""
    long_record: list[int] = field(default_factory=list)
    firsts: list[np.ndarray] = field(default_factory=list)
    seconds: list[np.ndarray] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    short_record: list[int] = field(default_factory=list)

    def add(self, records: list[Record], first_record: int, size: int) -> None:
        """Add the records of one set.

        Args:
            records: of the set.
            first_record: number of the first one over all sets.
            size: units of an n-gram.
        """
        texts, owners = _key_texts(records)
        keys = Units.of(pa.array(texts, pa.large_string()))
        answers = Units.of(pa.array([_first(record["answers"]) for record in records], pa.large_string()))
        # The answer may follow the options, so the window behind a question grows with them.
        options = Units.of(pa.array(["\n".join(record["answers"]) for record in records], pa.large_string()))
        grams, begins = keys.ngrams(size)
        rows = [np.unique(grams[begins[row] : begins[row + 1]]) for row in range(len(texts))]
        common_grams = _common_grams(rows, owners, len(records))
        for row, owner in enumerate(owners):
            if len(rows[row]):
                specific_grams = _without(rows[row], common_grams)
                self.grams.append(specific_grams if len(specific_grams) else rows[row])
                self.long_record.append(first_record + owner)
                continue
            information = _information(keys, row) + _information(answers, owner)
            if information >= _MIN_INFORMATION and len(keys.row(row)) >= ANCHOR:
                self.firsts.append(keys.row(row))
                self.seconds.append(answers.row(owner))
                self.windows.append(_ANSWER_WINDOW + 2 * len(options.row(owner)))
                self.short_record.append(first_record + owner)


def _key_texts(records: list[Record]) -> tuple[list[str], list[int]]:
    """Return texts to search and the record of each: the entire question, and all but its longest part.

    The longest of several parts is usually a passage, which a copy may lack.
    """
    texts = []
    owners = []
    for number, record in enumerate(records):
        parts = record["question"]
        texts.append("\n".join(parts))
        owners.append(number)
        if len(parts) > 1:
            longest = max(range(len(parts)), key=lambda part: len(parts[part]))
            texts.append("\n".join(part for index, part in enumerate(parts) if index != longest))
            owners.append(number)
    return texts, owners


def _first(texts: list[str]) -> str:
    return texts[0] if texts else ""


def _common_grams(rows: list[np.ndarray], owners: list[int], records: int) -> np.ndarray:
    """Return n-grams that more than two records and more than 1 % of a set share: its recurring phrases."""
    of_record = [np.empty(0, np.uint64)] * records
    for grams, owner in zip(rows, owners, strict=True):
        of_record[owner] = np.union1d(of_record[owner], grams) if len(of_record[owner]) else grams
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *of_record]), return_counts=True)
    return values[counts > max(2, records // 100)]


def _without(grams: np.ndarray, common_grams: np.ndarray) -> np.ndarray:
    """Return the n-grams that are not among the sorted `common_grams`."""
    if not len(common_grams):
        return grams
    positions = np.minimum(np.searchsorted(common_grams, grams), len(common_grams) - 1)
    return grams[common_grams[positions] != grams]


def _information(units: Units, row: int) -> int:
    """Return two per word and one per other unit of a row."""
    begin = units.begins[row]
    end = units.begins[row + 1]
    return int(end - begin + units.is_word[begin:end].sum())


@dataclass(frozen=True)
class Marks:
    """N-grams and short keys of the index that occur in some texts."""

    grams: np.ndarray  # bool [n-grams], by position in the index
    short: np.ndarray  # bool [short keys]

    def __or__(self, other: Marks) -> Marks:
        return Marks(self.grams | other.grams, self.short | other.short)


class Items:
    """Index of the evaluation records of all sets."""

    def __init__(self, sets: list[str], set_of: np.ndarray, keys: _Keys, size: int) -> None:
        """Index the keys.

        Args:
            sets: names of the sets.
            set_of: number of each record's set, int32 `[records]`.
            keys: of all records.
            size: units of an n-gram.
        """
        self.sets = sets
        self.set_of = set_of
        self.size = size
        all_grams = np.concatenate([np.empty(0, np.uint64), *keys.grams])
        self.index, positions = np.unique(all_grams, return_inverse=True)
        """Sorted distinct n-grams, uint64 `[n-grams]`."""
        self.positions = positions.astype(np.int64)
        """Position in the index of all long keys' n-grams, key by key, int64."""
        self.begins = np.concatenate([[0], np.cumsum([len(grams) for grams in keys.grams])]).astype(np.int64)
        self.long_record = np.array(keys.long_record, np.int64)
        self.short_record = np.array(keys.short_record, np.int64)
        self.pairs = PairIndex(keys.firsts, keys.seconds, keys.windows)

    @classmethod
    def read(cls, folders: Mapping[str, Path], size: int) -> Items:
        """Read the questions and answers of the held-out records of labelled data.

        Args:
            folders: name of a set -> output of its step.
            size: units of an n-gram.
        """
        keys = _Keys()
        set_of = [np.empty(0, np.int32)]
        for number, folder in enumerate(folders.values()):
            records = pq.read_table(folder / ASKED_FILE).to_pylist()
            keys.add(records, sum(map(len, set_of)), size)
            set_of.append(np.full(len(records), number, np.int32))
        return cls(list(folders), np.concatenate(set_of), keys, size)

    def no_marks(self) -> Marks:
        """Return the marks of an empty text."""
        return Marks(np.zeros(len(self.index), bool), np.zeros(len(self.short_record), bool))

    def marks(self, column: pa.Array) -> Marks:
        """Return which n-grams and short keys of the index occur in a column of texts."""
        marks = self.no_marks()
        units = Units.of(column)
        positions = find(units.ngrams(self.size)[0], self.index)
        marks.grams[positions[positions >= 0]] = True
        marks.short[self.pairs.find(units)[0]] = True
        return marks

    def shares(self, marks: Marks) -> np.ndarray:
        """Return the marked share of each record's best key, float64 `[records]`.

        NaN for records that are too short to decide.
        """
        share = np.full(len(self.set_of), np.nan)
        marked_before = np.concatenate([[0], np.cumsum(marks.grams[self.positions])])
        marked_counts = np.diff(marked_before[self.begins])
        np.fmax.at(share, self.long_record, marked_counts / np.maximum(1, np.diff(self.begins)))
        np.fmax.at(share, self.short_record, marks.short.astype(float))
        return share


class Holder:
    """Finder of documents that contain an evaluation record."""

    def __init__(self, items: Items, threshold: float = DIRTY) -> None:
        """Prepare the search.

        Args:
            items: index of the records.
            threshold: share of a long key's n-grams that a document must have.
        """
        self.items = items
        self.threshold = threshold
        # Keys by n-gram: the inverse of `items.positions`.
        order = np.argsort(items.positions, kind="stable")
        self.key = np.repeat(np.arange(len(items.begins) - 1), np.diff(items.begins))[order]
        self.starts = np.searchsorted(items.positions[order], np.arange(len(items.index) + 1))

    def __call__(self, batch: pa.RecordBatch) -> np.ndarray:
        """Return for each row of a batch with a column `text` whether it contains a record, bool `[rows]`."""
        contains_record = np.zeros(batch.num_rows, bool)
        contains_record[self.found(batch["text"])[0]] = True
        return contains_record

    def found(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return row and record number of each record that a row of the column contains, int64 each."""
        units = Units.of(column)
        short_keys, rows = self.items.pairs.find(units)
        occurrences = [np.stack([rows, self.items.short_record[short_keys]])]
        grams, begins = units.ngrams(self.items.size)
        positions = find(grams, self.items.index)
        is_indexed = positions >= 0
        if is_indexed.any():
            rows = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
            row_of_hit, position_of_hit = np.unique(
                np.stack([rows[is_indexed], positions[is_indexed]]), axis=1
            )
            # An n-gram may belong to several keys: each counts.
            key_counts = np.diff(self.starts)[position_of_hit]
            keys_of_hits = np.concatenate(
                [self.key[self.starts[position] : self.starts[position + 1]] for position in position_of_hit]
            )
            (row_of_key, keys), gram_counts = np.unique(
                np.stack([np.repeat(row_of_hit, key_counts), keys_of_hits]), axis=1, return_counts=True
            )
            is_contained = gram_counts >= self.threshold * np.diff(self.items.begins)[keys]
            occurrences.append(
                np.stack([row_of_key[is_contained], self.items.long_record[keys[is_contained]]])
            )
        row, record = np.unique(np.concatenate(occurrences, axis=1), axis=1)
        return row, record


class SetFacts(TypedDict):
    """Records of an evaluation set, counted by their share in the training data."""

    set: str
    records: int
    too_short: int
    clean: int
    partly: int
    dirty: int
    overlaps: dict[str, int]
    """Training set -> records that are not clean in it."""


class Facts(TypedDict):
    """Facts that the step records in its manifest."""

    ngram: int
    trained_on: list[str]
    sets: list[SetFacts]


def build(build: Build) -> Facts:
    """Compare every evaluation set with every source and task that is trained on."""
    recipe: ContaminationRecipe = build.recipe
    items = Items.read({name: build.inputs[f"task-{name}"] for name in recipe.sets}, recipe.ngram)
    seen: dict[str, Marks] = {}
    for name, column in _training(build, recipe):
        seen[name] = seen.get(name, items.no_marks()) | items.marks(column)
    shares = {name: items.shares(marks) for name, marks in seen.items()}
    all_marks = items.no_marks()
    for marks in seen.values():
        all_marks = all_marks | marks
    all_shares = items.shares(all_marks)
    columns = {"set": [items.sets[number] for number in items.set_of], "all": all_shares}
    columns |= {f"in {name}": share for name, share in shares.items()}  # a source may be called `all`
    pq.write_table(pa.table(columns), build.out / "records.parquet", compression="zstd")
    return Facts(
        ngram=recipe.ngram,
        trained_on=sorted(seen),
        sets=[_set_facts(items, number, all_shares, shares) for number in range(len(items.sets))],
    )


def _set_facts(
    items: Items, number: int, all_shares: np.ndarray, shares: Mapping[str, np.ndarray]
) -> SetFacts:
    is_of_set = items.set_of == number
    set_shares = all_shares[is_of_set]
    overlaps = {name: int((share[is_of_set] >= CLEAN).sum()) for name, share in sorted(shares.items())}
    return SetFacts(
        set=items.sets[number],
        records=int(is_of_set.sum()),
        too_short=int(np.isnan(set_shares).sum()),
        clean=int((set_shares < CLEAN).sum()),
        partly=int(((set_shares >= CLEAN) & (set_shares < DIRTY)).sum()),
        dirty=int((set_shares >= DIRTY).sum()),
        overlaps={name: count for name, count in overlaps.items() if count},
    )


def _training(build: Build, recipe: ContaminationRecipe) -> Iterator[tuple[str, pa.Array]]:
    """Yield texts that are trained on, by source or task: documents of the mixture, pairs of the tasks."""
    if "mixture" in build.inputs:
        yield from _documents(build.inputs["corpus"], build.inputs["mixture"])
    for name in recipe.tasks:
        yield f"task {name}", _records(build.inputs[f"task-{name}"] / "train.parquet")


def _documents(corpus: Path, mixture: Path) -> Iterator[tuple[str, pa.Array]]:
    """Yield texts of the documents that the mixture uses, by source; others are never trained on."""
    used = _used_documents(mixture)
    for path in corpus_files(corpus):
        for batch in read_batches(path, 1000, ["source", "id", "text"]):
            chosen = batch.filter(pc.is_in(_document_names(batch), value_set=used))
            for source in chosen["source"].unique().to_pylist():
                yield source, chosen.filter(pc.equal(chosen["source"], source))["text"]


def _used_documents(mixture: Path) -> pa.Array:
    files = sorted(f for f in mixture.glob("*/documents.parquet") if f.parent.name != HELDOUT)
    tables = [pq.read_table(file, columns=["source", "id"]) for file in files]
    names = [_document_names(batch) for table in tables for batch in table.to_batches()]
    return pa.concat_arrays(names).unique()


def _document_names(batch: pa.RecordBatch) -> pa.Array:
    """Return `source/id` of each row."""
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
