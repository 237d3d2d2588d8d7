"""Text to token ids and back: SentencePiece pieces plus the release's appended special tokens.

Owns the ids. Layout as in the released model: 0 pad, 1 </s>, 2 <unk>, the model's pieces, then
<extra_id_99>..<extra_id_0>, then <R> <S> <X>. With the mT5 file (250,100 pieces) that gives
<extra_id_0> = 250199 and <R> = 250200, the released ids. The appended tokens are unknown to
SentencePiece, so raw text such as "<S>" or "</s>" never becomes a control token.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece as spm

from openba.artifacts import Build
from openba.errors import UserError
from openba.recipes.data import TokenizerRecipe

MODEL_FILE = "spiece.model"
SENTINELS = 100
MODES = ("R", "S", "X")
WHITESPACE = ("\n", "\t", "\u2581" * 2, "\u2581" * 4, "\u2581" * 8)
"""Pieces of the trained model, so that code keeps its layout (paper section 6.2). A space is written
as SentencePiece's U+2581: as a plain space such a piece is in the model, but never used."""


@dataclass(frozen=True)
class Encoded:
    """Ids of a column of texts; row i has `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    """int32 `[tokens]`, the rows one after another."""
    offsets: np.ndarray
    """int64 `[rows + 1]`, from 0 to the number of tokens."""


class Tokenizer:
    """A SentencePiece model with the appended block of special tokens."""

    pad, eos, unknown = 0, 1, 2

    def __init__(self, path: Path) -> None:
        try:
            self.pieces = spm.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: not a readable SentencePiece model ({error}); give the .model file"
            ) from None
        self.base = self.pieces.get_piece_size()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From a tokenizer step's directory, or an exported model's."""
        return cls(folder / MODEL_FILE)

    @property
    def size(self) -> int:
        """Number of ids in use; the model's vocabulary is padded beyond it."""
        return self.base + SENTINELS + len(MODES)

    def sentinel(self, k: int) -> int:
        """Id of <extra_id_k>, k in 0..99; the block is stored in falling order."""
        if not 0 <= k < SENTINELS:
            raise ValueError(f"sentinel {k} is not in 0..{SENTINELS - 1}")
        return self.base + SENTINELS - 1 - k

    def mode(self, name: str) -> int:
        """Id of <R>, <S> or <X>."""
        return self.base + SENTINELS + MODES.index(name)

    def encode(self, text: str) -> list[int]:
        """Ids of raw text; no special token is added or recognised."""
        return self.pieces.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts."""
        return self.pieces.encode(list(texts))

    def encode_arrow(self, column: pa.Array | pa.ChunkedArray) -> Encoded:
        """Ids of a string column; no special token is added or recognised, no Python object per token.

        Raises:
            UserError: a row is null.
        """
        if column.null_count:
            row = pa.compute.index(column.is_null(), True).as_py()
            raise UserError(f"row {row}: the text is null; drop the row or give it a text")
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        rows = [
            ids
            for chunk in chunks
            for ids in self.pieces.encode(
                chunk.cast(pa.large_binary()).to_pylist(), return_type="numpy", num_threads=1
            )
        ]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat = np.concatenate([np.empty(0, dtype=np.int32), *rows])
        return Encoded(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the pieces; special and padding ids are left out."""
        return self.pieces.decode([int(i) for i in ids if self.unknown < i < self.base])

    def show(self, ids: Sequence[int]) -> str:
        """Text with the special tokens written out, for people."""
        return "".join(self._piece(int(i)) for i in ids)

    def _piece(self, i: int) -> str:
        if i < self.base:
            return self.pieces.id_to_piece(i).replace("▁", " ")
        appended = i - self.base
        if appended < SENTINELS:
            return f"<extra_id_{SENTINELS - 1 - appended}>"
        return f"<{MODES[appended - SENTINELS]}>" if appended < SENTINELS + len(MODES) else "<padding>"


def build(build: Build) -> dict[str, Any]:
    """Step `tokenizer`: take the file or train on the cleaned corpus; facts say how well it fits."""
    recipe: TokenizerRecipe = build.recipe
    target = build.out / MODEL_FILE
    if recipe.kind == "file":
        source = Path(str(recipe.path))
        if not source.is_file():
            raise UserError(f"tokenizer.path: {source}: no such file; put the mT5 spiece.model there")
        shutil.copyfile(source, target)
    else:
        try:
            _train(recipe, build.inputs["corpus"], target)
        except RuntimeError as error:  # SentencePiece names the size that the text allows
            raise UserError(f"tokenizer.vocab_size: {recipe.vocab_size}: {error}") from None
    tokenizer = Tokenizer(target)
    return {"vocab": tokenizer.size, **_fit(tokenizer, build.inputs["corpus"])}


def _train(recipe: TokenizerRecipe, corpus: Path, target: Path) -> None:
    model = io.BytesIO()  # given a path, SentencePiece writes that path into the model
    spm.SentencePieceTrainer.train(
        sentence_iterator=_lines(corpus, recipe.train_characters, recipe.seed),
        model_writer=model,
        vocab_size=recipe.vocab_size,
        model_type="unigram",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=list(WHITESPACE),
        pad_id=Tokenizer.pad,
        eos_id=Tokenizer.eos,
        unk_id=Tokenizer.unknown,
        bos_id=-1,
        character_coverage=0.9995,
        num_threads=1,  # more threads change the order of float sums, and so the pieces
        minloglevel=2,
    )
    target.write_bytes(model.getvalue())


def _lines(corpus: Path, characters: int, seed: int) -> Iterator[str]:
    """Lines of a random sample of documents: one third of the characters per language."""
    texts: dict[str, list[str]] = {}
    for path in sorted(corpus.glob("*.parquet")):
        if path.stem != "removed":
            table = pq.read_table(path, columns=["text", "language"])
            for text, language in zip(table["text"].to_pylist(), table["language"].to_pylist(), strict=True):
                texts.setdefault(language, []).append(text)
    random = np.random.default_rng(seed)
    for language in sorted(texts):
        left = characters // len(texts)
        for index in random.permutation(len(texts[language])):
            for line in texts[language][index].split("\n"):
                if line and left > 0:
                    left -= len(line)
                    yield line[:2000]


def _fit(tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """Characters per token and share of unknown or byte pieces, on the head of each source."""
    counts: dict[str, list[int]] = {}
    for path in sorted(corpus.glob("*.parquet")):
        if path.stem == "removed":
            continue
        for batch in pq.ParquetFile(path).iter_batches(200, columns=["text", "language"]):
            row = counts.setdefault(batch["language"][0].as_py(), [0, 0, 0])
            for text in batch["text"].to_pylist():
                ids = tokenizer.encode(text[:5000])
                row[0] += len(text[:5000])
                row[1] += len(ids)
                row[2] += sum(i == tokenizer.unknown or tokenizer.pieces.is_byte(i) for i in ids)
            break
    return {
        "characters_per_token": {k: round(chars / max(1, ids), 3) for k, (chars, ids, _) in counts.items()},
        "byte_or_unknown_share": {k: round(odd / max(1, ids), 4) for k, (_, ids, odd) in counts.items()},
    }
