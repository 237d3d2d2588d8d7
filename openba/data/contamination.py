"""Which evaluation records stand in the training data: n-gram overlap of Chinese and English text.

Owns the units (a Han character or kana, or a run of other letters and digits, ASCII in lower case),
the index of the evaluation sets' n-grams and both directions of the question: how much of a record
is in a training set (the report, as the paper's Table 4), and whether a training document holds a
record (what a mixture drops). No Python object is made per document.

The paper compared names of data sets, since "fine-grained data contamination checking of
pre-training data is computationally prohibitive" (section 4.1, footnote 7); here the text is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numba import njit, types

from openba.artifacts import Build
from openba.data.catalogue import corpus_files
from openba.data.schema import read_batches
from openba.recipes.data import ContaminationRecipe

_WORDS = types.Array(types.uint64, 1, "C")
_READ_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_NUMBERS = types.Array(types.int64, 1, "C")
_READ_NUMBERS = types.Array(types.int64, 1, "C", readonly=True)
_SLASH, _LINE = (pa.scalar(text, pa.large_string()) for text in "/\n")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SCATTER, _FINISH = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

CLEAN, DIRTY = 0.2, 0.8
"""A record with less of its n-grams in the training data is clean, one with as much is dirty."""


@njit(types.uint64(types.uint64), cache=True, nogil=True)
def _mix(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(30))) * _SCATTER
    value = (value ^ (value >> np.uint64(27))) * _FINISH
    return value ^ (value >> np.uint64(31))


@njit(types.int64(_BYTES, _READ_NUMBERS, types.int64, _WORDS, _NUMBERS), cache=True, nogil=True)
def _ngrams(text: np.ndarray, offsets: np.ndarray, size: int, grams: np.ndarray, ends: np.ndarray) -> int:
    """Hash each row's n-grams into `grams`, in order; `ends[row + 1]` says where the row's end."""
    units = np.empty(size, np.uint64)  # the last `size` units, in a ring
    leading = np.uint64(1)
    for _ in range(size):
        leading *= _BASE
    found = 0
    for row in range(len(offsets) - 1):
        count, rolling, word, inside = 0, np.uint64(0), np.uint64(0), False
        at, end = offsets[row], offsets[row + 1]
        while at <= end:
            lone: Any = False
            letter: Any = False
            code = np.uint64(0)
            if at < end:
                byte = np.uint64(text[at])
                code, width = byte, 1
                if byte >= 0xF0:
                    width, code = 4, byte & np.uint64(7)
                elif byte >= 0xE0:
                    width, code = 3, byte & np.uint64(15)
                elif byte >= 0xC0:
                    width, code = 2, byte & np.uint64(31)
                for k in range(1, min(width, end - at)):
                    code = (code << np.uint64(6)) | (np.uint64(text[at + k]) & np.uint64(63))
                at += width
                if 65 <= code <= 90:
                    code += np.uint64(32)
                lone = 0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0x20000 <= code <= 0x3FFFF
                letter = not lone and (
                    48 <= code <= 57
                    or 97 <= code <= 122
                    or (0xC0 <= code <= 0x1FFF and code != 0xD7 and code != 0xF7)
                    or 0xAC00 <= code <= 0xD7A3
                )
            else:
                at += 1
            if letter:
                word, inside = word * _BASE + code + np.uint64(1), True
                continue
            for turn in range(2):  # the word that ends here, then the character itself
                if (turn == 0 and not inside) or (turn == 1 and not lone):
                    continue
                unit = _mix(word) if turn == 0 else _mix(code * _FINISH + np.uint64(1))
                place = count % size
                rolling = rolling * _BASE + unit
                if count >= size:
                    rolling -= units[place] * leading
                units[place] = unit
                count += 1
                if count >= size:
                    grams[found] = _mix(rolling)
                    found += 1
            word, inside = np.uint64(0), False
        ends[row + 1] = found
    return found


@njit(_NUMBERS(_READ_WORDS, _READ_WORDS), cache=True, nogil=True)
def _find(grams: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Place of each n-gram in the sorted index, -1 for none. A table of first bits narrows the search."""
    bits = 1
    while (1 << bits) < len(index) and bits < 24:
        bits += 1
    shift = np.uint64(64 - bits)
    starts = np.zeros((1 << bits) + 1, np.int64)
    for value in index:
        starts[np.int64(value >> shift) + 1] += 1
    for bucket in range(1 << bits):
        starts[bucket + 1] += starts[bucket]
    found = np.full(len(grams), -1, np.int64)
    for i in range(len(grams)):
        head = np.int64(grams[i] >> shift)
        for place in range(starts[head], starts[head + 1]):
            if index[place] == grams[i]:
                found[i] = place
                break
    return found


def ngrams(column: pa.Array, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all n-grams of a column of texts: uint64 `[g]`, and int64 `[rows + 1]` where rows begin."""
    column = column.cast(pa.large_string())
    _, offsets, data = column.buffers()
    text = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    begins = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    grams, ends = np.empty(int(begins[-1] - begins[0]) + 1, np.uint64), np.zeros(len(column) + 1, np.int64)
    found = _ngrams(text, begins, size, grams, ends)
    return grams[:found], ends


@dataclass(frozen=True)
class Items:
    """The n-grams of evaluation records, all sets together."""

    sets: list[str]
    set_of: np.ndarray  # int32 [items]
    index: np.ndarray  # uint64 [n], sorted and distinct
    places: np.ndarray  # int64 [g], place in the index of each record's n-grams, record by record
    begins: np.ndarray  # int64 [items + 1]
    size: int

    @classmethod
    def read(cls, folders: Mapping[str, Path], size: int) -> Items:
        """The held-out records of tasks, input and target together.

        N-grams that more than two records of a set and more than one in a hundred share are the
        templates', and left out. Records shorter than an n-gram have none.
        """
        grams, counts, set_of = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], []
        for number, folder in enumerate(folders.values()):
            found, begins = ngrams(_records(folder / "heldout.parquet"), size)
            rows = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
            pairs = np.unique(np.stack([found, rows.astype(np.uint64)]), axis=1)
            values, shared = np.unique(pairs[0], return_counts=True)
            kept = np.isin(pairs[0], values[shared <= max(2, (len(begins) - 1) // 100)])
            order = np.argsort(pairs[1][kept], kind="stable")
            grams.append(pairs[0][kept][order])
            counts.append(np.bincount(pairs[1][kept].astype(np.int64), minlength=len(begins) - 1))
            set_of.append(np.full(len(begins) - 1, number, np.int32))
        index, places = np.unique(np.concatenate(grams), return_inverse=True)
        begins = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        numbers = np.concatenate([np.empty(0, np.int32), *set_of])
        return cls(list(folders), numbers, index, places.astype(np.int64), begins, size)

    def hits(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Where a column's n-grams stand in the index: int64 `[h]`, and the row of each."""
        grams, begins = ngrams(column, self.size)
        found = _find(grams, self.index)
        rows = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
        return found[found >= 0], rows[found >= 0]

    def shares(self, seen: np.ndarray) -> np.ndarray:
        """Share of each record's n-grams that `seen` (bool `[n]`) marks; NaN for one without any."""
        sums = np.concatenate([[0], np.cumsum(seen[self.places])])
        with np.errstate(invalid="ignore"):
            return np.diff(sums[self.begins]) / np.diff(self.begins)


class Holder:
    """Says which documents hold an evaluation record."""

    def __init__(self, items: Items, threshold: float = DIRTY) -> None:
        self.items, self.threshold = items, threshold
        # Records by n-gram: the inverse of `places`.
        order = np.argsort(items.places, kind="stable")
        self.record = np.repeat(np.arange(len(items.begins) - 1), np.diff(items.begins))[order]
        self.starts = np.searchsorted(items.places[order], np.arange(len(items.index) + 1))

    def __call__(self, batch: pa.RecordBatch) -> np.ndarray:
        """Rows of a batch with a column `text` -> bool: at least the threshold's share of one record."""
        places, rows = self.items.hits(batch["text"])
        held = np.zeros(batch.num_rows, bool)
        if len(places) == 0:
            return held
        pairs = np.unique(np.stack([rows, places]), axis=1)
        sizes = np.diff(self.starts)[pairs[1]]
        owners = np.concatenate([self.record[self.starts[p] : self.starts[p + 1]] for p in pairs[1]])
        keys, counts = np.unique(np.stack([np.repeat(pairs[0], sizes), owners]), axis=1, return_counts=True)
        enough = counts >= self.threshold * np.diff(self.items.begins)[keys[1]]
        held[keys[0][enough]] = True
        return held


def build(build: Build) -> dict[str, Any]:
    """Step `contamination`: every evaluation set against every source and task that is trained on.

    Returns:
        Facts: `sets`, a row a set with its records counted as too short, clean, partly, dirty, and
        the training sets with the number of records that are not clean in them.
    """
    recipe: ContaminationRecipe = build.recipe
    items = Items.read({name: build.inputs[f"task-{name}"] for name in recipe.sets}, recipe.ngram)
    seen: dict[str, np.ndarray] = {}
    for name, column in _training(build, recipe):
        marks = seen.setdefault(name, np.zeros(len(items.index), bool))
        marks[items.hits(column)[0]] = True
    shares = {name: items.shares(marks) for name, marks in seen.items()}
    whole = items.shares(np.any([*seen.values(), np.zeros(len(items.index), bool)], axis=0))
    columns = {"set": [items.sets[k] for k in items.set_of], "all": whole, **shares}
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
    files = [mixture / part / "documents.parquet" for part in ("stage1", "stage2")]
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
