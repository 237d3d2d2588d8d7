"""All documents of a cleaned corpus as numbers: order, size, group; and their tokens, made on demand.

Owns what is known of each document beside its text, and the spool that tokens wait in until the
mixture writes them in its order. In memory stand about 78 bytes a document, its id among them;
texts pass in batches and tokens go to disk. It chooses nothing (`openba.data.mixture`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from openba.data.schema import read_batches
from openba.data.store import DOCUMENTS, TokenStore, TokenWriter
from openba.errors import UserError
from openba.recipes.data import LANGUAGES
from openba.tokenizer.tokenizer import Tokenizer

_BATCH = 1000
Exclude = Callable[[pa.RecordBatch], np.ndarray]
"""Rows of a batch -> bool, True: the document must not be used."""


def corpus_files(corpus: Path) -> list[Path]:
    """The documents' files of a cleaning step's folder, in order of their names."""
    return [path for path in sorted(corpus.glob("*.parquet")) if path.stem != "removed"]


class Catalogue:
    """The documents of a corpus, numbered in the order of their files and rows."""

    def __init__(self, corpus: Path, groups: Mapping[str, float], seed: int) -> None:
        """Args: `groups`: names of sources or languages; a source that is named counts to itself only.

        Raises:
            UserError: a group names neither a source nor a language of the corpus.
        """
        self.corpus, self.names = corpus, list(groups)
        parts = list(self._scan(seed))
        self.documents = pa.concat_tables([part[0] for part in parts]).unify_dictionaries().combine_chunks()
        self.order, self.group = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
        self.bytes = np.concatenate([part[3] for part in parts])
        self.text = np.concatenate([part[4] for part in parts])
        """uint64, equal for equal texts; decides which part of the mixture a text goes to."""
        for name in self.names:
            of_source = self.documents.filter(pc.equal(self.documents["source"], name))
            if name in LANGUAGES and set(of_source["language"].unique().to_pylist()) - {name}:
                raise UserError(f"mixture.shares: {name}: a language, and a source of another; rename it")
        for code, name in enumerate(self.names):
            if not (self.group == code).any():
                raise UserError(f"mixture.shares: {name}: neither a source nor a language of the corpus")
        self.tokens = np.full(len(self.order), -1, np.int64)  # with </s>; -1: not tokenised
        self._spooled = np.full(len(self.order), -1, np.int64)  # number in the spool
        self._rounds: list[tuple[int, TokenStore]] = []  # first number, its spool

    def _scan(self, seed: int) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        for batch in self._batches(["source", "id", "language", "text"]):
            keys = zip(batch["source"].to_pylist(), batch["id"].to_pylist(), strict=True)
            digests = b"".join(xxhash.xxh3_128_digest(f"{s}/{i}".encode(), seed) for s, i in keys)
            order = np.frombuffer(digests, np.dtype([("high", ">u8"), ("low", ">u8")]))
            names = pa.array(self.names)
            own, language = (
                pc.fill_null(pc.index_in(batch[key], names), -1).to_numpy() for key in ("source", "language")
            )
            group = np.where(own >= 0, own, language).astype(np.int16)
            columns = [
                batch["source"].dictionary_encode(),
                batch["id"],
                batch["language"].dictionary_encode(),
            ]
            table = pa.table(columns, ["source", "id", "language"])
            yield (
                table,
                order,
                group,
                pc.binary_length(batch["text"]).to_numpy(),
                _digests(batch["text"], seed),
            )

    def ordered(self, name: str) -> np.ndarray:
        """Numbers of a group's documents in an order by texts and seed; equal texts are neighbours."""
        numbers = np.flatnonzero(self.group == self.names.index(name))
        keys = self.order[numbers]
        return numbers[np.lexsort((keys["low"], keys["high"], self.text[numbers]))]

    def tokenise(
        self, numbers: np.ndarray, tokenizer: Tokenizer, spool: Path, exclude: Exclude | None
    ) -> None:
        """Tokenise these documents, those that `exclude` names to nothing, in one pass over the files."""
        wanted = np.zeros(len(self.order), bool)
        wanted[numbers] = True
        first, begin = int(self._spooled.max(initial=-1)) + 1, 0
        folder = spool / f"{len(self._rounds):03}"
        with TokenWriter(folder) as writer:
            spooled = first
            for batch in self._batches(["source", "id", "language", "text"]):
                rows = np.flatnonzero(wanted[begin : begin + len(batch)])
                if len(rows):
                    chosen = batch.take(pa.array(rows))
                    dropped = exclude(chosen) if exclude else np.zeros(len(rows), bool)
                    sizes = _append(writer, chosen.filter(pa.array(~dropped)), tokenizer)
                    self.tokens[begin + rows[dropped]] = 0
                    self.tokens[begin + rows[~dropped]] = sizes
                    self._spooled[begin + rows[~dropped]] = np.arange(spooled, spooled + len(sizes))
                    spooled += len(sizes)
                begin += len(batch)
        self._rounds.append((first, TokenStore(folder)))

    def ids(self, number: int) -> np.ndarray:
        """Token ids of a tokenised document, int32, </s> last."""
        place = int(self._spooled[number])
        first, store = next(row for row in reversed(self._rounds) if row[0] <= place)
        return store.document(place - first)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for path in corpus_files(self.corpus):
            yield from read_batches(path, _BATCH, columns)


def _digests(column: pa.Array, seed: int) -> np.ndarray:
    """64 bits of each text, read in place."""
    column = column.cast(pa.large_string())
    _, offsets, data = column.buffers()
    begins = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1].tolist()
    text = memoryview(data) if data else memoryview(b"")
    digests = [xxhash.xxh3_64_intdigest(text[a:b], seed) for a, b in pairwise(begins)]
    return np.array(digests, np.uint64)


def _append(writer: TokenWriter, batch: pa.RecordBatch, tokenizer: Tokenizer) -> np.ndarray:
    """Tokenise and spool a batch; tokens of each document, with the </s> that is added."""
    encoded = tokenizer.encode_arrow(batch["text"])
    sizes = np.diff(encoded.offsets) + 1
    ids = np.insert(encoded.ids, encoded.offsets[1:], tokenizer.eos)
    columns = [batch["source"], batch["id"], batch["language"], pa.array(sizes)]
    rows = [*(column.cast(DOCUMENTS.field(k).type) for k, column in enumerate(columns))]
    rows.append(pa.array(np.zeros(len(sizes), np.int32)))
    writer.append(ids, pa.RecordBatch.from_arrays(rows, schema=DOCUMENTS))
    return sizes
