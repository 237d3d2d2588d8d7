"""Catalogue of all documents of a cleaned corpus: order, size and group of each, and its tokens on demand.

Takes about 78 bytes of memory per document, its id included. Texts are read in batches, and tokens wait in
token stores on disk until the mixture writes them in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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
"""Rows of a batch -> bool `[rows]`, true for documents that must not be used."""


def corpus_files(corpus: Path) -> list[Path]:
    """Return the files of documents in a cleaning step's folder, in order of their names."""
    return [path for path in sorted(corpus.glob("*.parquet")) if path.stem != "removed"]


class _Part(NamedTuple):
    """Attributes of `Catalogue` for one batch of documents."""

    documents: pa.Table
    order: np.ndarray
    group: np.ndarray
    bytes: np.ndarray
    text: np.ndarray


class Catalogue:
    """Documents of a corpus, numbered in the order of their files and rows."""

    def __init__(self, corpus: Path, groups: Mapping[str, float], seed: int) -> None:
        """Read all documents once.

        Args:
            corpus: output folder of the step `clean`.
            groups: names of sources or languages; a source that is named does not count to its language.
            seed: of the order and the digests.

        Raises:
            UserError: a group names neither a source nor a language of the corpus.
        """
        self.corpus = corpus
        self.names = list(groups)
        parts = list(self._scan(seed))
        tables = [batch_part.documents for batch_part in parts]
        self.documents = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        self.order = np.concatenate([batch_part.order for batch_part in parts])
        """128 pseudo-random bits per document, fields `high` and `low`."""
        self.group = np.concatenate([batch_part.group for batch_part in parts])
        """int16, index into `names`; -1: none."""
        self.bytes = np.concatenate([batch_part.bytes for batch_part in parts])
        self.text = np.concatenate([batch_part.text for batch_part in parts])
        """uint64, equal for equal texts."""
        self.cluster = self.text
        """uint64, equal for documents that must go to one part of the mixture; equal texts, until near copies
        are known (`openba.data.near_copies.cluster_keys`)."""
        for name in self.names:
            of_source = self.documents.filter(pc.equal(self.documents["source"], name))
            if name in LANGUAGES and set(of_source["language"].unique().to_pylist()) - {name}:
                raise UserError(f"mixture.shares: {name}: a language, and a source of another; rename it")
        for code, name in enumerate(self.names):
            if not (self.group == code).any():
                raise UserError(f"mixture.shares: {name}: neither a source nor a language of the corpus")
        self.tokens = np.full(len(self.order), -1, np.int64)
        """Tokens per document, </s> included; -1: not tokenised yet, 0: excluded."""
        self._spool_numbers = np.full(len(self.order), -1, np.int64)  # over all spools
        self._spools: list[tuple[int, TokenStore]] = []  # first number in the spool, the spool

    def _scan(self, seed: int) -> Iterator[_Part]:
        names = pa.array(self.names)
        for batch in self._batches(["source", "id", "language", "text"]):
            keys = zip(batch["source"].to_pylist(), batch["id"].to_pylist(), strict=True)
            # Hash of source and id, not of the row number: the order does not depend on file names.
            digests = b"".join(xxhash.xxh3_128_digest(f"{s}/{i}".encode(), seed) for s, i in keys)
            of_source, of_language = (
                pc.fill_null(pc.index_in(batch[key], names), -1).to_numpy() for key in ("source", "language")
            )
            documents = {
                "source": batch["source"].dictionary_encode(),
                "id": batch["id"],
                "language": batch["language"].dictionary_encode(),
            }
            yield _Part(
                documents=pa.table(documents),
                order=np.frombuffer(digests, np.dtype([("high", ">u8"), ("low", ">u8")])),
                group=np.where(of_source >= 0, of_source, of_language).astype(np.int16),
                bytes=pc.binary_length(batch["text"]).to_numpy(),
                text=_digests(batch["text"], seed),
            )

    def ordered(self, name: str) -> np.ndarray:
        """Return the numbers of a group's documents by cluster and seed; those of one are neighbours."""
        document_numbers = np.flatnonzero(self.group == self.names.index(name))
        keys = self.order[document_numbers]
        return document_numbers[np.lexsort((keys["low"], keys["high"], self.cluster[document_numbers]))]

    def tokenise(
        self, document_numbers: np.ndarray, tokenizer: Tokenizer, spool: Path, exclude: Exclude | None
    ) -> None:
        """Tokenise documents in one pass over the files.

        Args:
            document_numbers: of the documents.
            tokenizer: the mixture's.
            spool: folder for the token stores.
            exclude: finds documents that must not be used; these get 0 tokens.
        """
        is_wanted = np.zeros(len(self.order), bool)
        is_wanted[document_numbers] = True
        first_in_spool = int(self._spool_numbers.max(initial=-1)) + 1
        folder = spool / f"{len(self._spools):03}"
        next_in_spool = first_in_spool
        begin = 0
        with TokenWriter(folder) as writer:
            for batch in self._batches(["source", "id", "language", "text"]):
                row_numbers = np.flatnonzero(is_wanted[begin : begin + len(batch)])
                if len(row_numbers):
                    chosen = batch.take(pa.array(row_numbers))
                    is_excluded = exclude(chosen) if exclude else np.zeros(len(row_numbers), bool)
                    token_counts = _append(writer, chosen.filter(pa.array(~is_excluded)), tokenizer)
                    included = begin + row_numbers[~is_excluded]
                    self.tokens[begin + row_numbers[is_excluded]] = 0
                    self.tokens[included] = token_counts
                    self._spool_numbers[included] = np.arange(
                        next_in_spool, next_in_spool + len(token_counts)
                    )
                    next_in_spool += len(token_counts)
                begin += len(batch)
        self._spools.append((first_in_spool, TokenStore(folder)))

    def ids(self, document_number: int) -> np.ndarray:
        """Return the token ids of a tokenised document, int32 `[tokens]`, </s> last."""
        spool_number = int(self._spool_numbers[document_number])
        first, store = next(spool for spool in reversed(self._spools) if spool[0] <= spool_number)
        return store.document(spool_number - first)

    def _batches(self, column_names: list[str]) -> Iterator[pa.RecordBatch]:
        for path in corpus_files(self.corpus):
            yield from read_batches(path, _BATCH, column_names)


def _digests(column: pa.Array, seed: int) -> np.ndarray:
    """Return a 64-bit hash of each text, uint64 `[rows]`, without copying the texts."""
    column = column.cast(pa.large_string())
    _, offsets_buffer, data = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    text_bytes = memoryview(data) if data else memoryview(b"")
    digests = [xxhash.xxh3_64_intdigest(text_bytes[a:b], seed) for a, b in pairwise(offsets.tolist())]
    return np.array(digests, np.uint64)


def _append(writer: TokenWriter, batch: pa.RecordBatch, tokenizer: Tokenizer) -> np.ndarray:
    """Tokenise a batch, write it, and return the tokens of each document, the added </s> included."""
    encoded = tokenizer.encode_arrow(batch["text"])
    token_counts = np.diff(encoded.offsets) + 1
    ids = np.insert(encoded.ids, encoded.offsets[1:], tokenizer.eos)
    arrays = [batch["source"], batch["id"], batch["language"], pa.array(token_counts)]
    columns = [*(column.cast(DOCUMENTS.field(index).type) for index, column in enumerate(arrays))]
    columns.append(pa.array(np.zeros(len(token_counts), np.int32)))
    writer.append(ids, pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS))
    return token_counts
