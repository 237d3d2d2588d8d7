"""Tokenizer read from the folder of a tokenizer step or of an exported model.

The folder has `spiece.model`, and in `tokenizer_config.json` the switch of the whitespace tokens and the
tokens that were added for fine-tuning. Encoding
itself is in `openba.tokenizer.pieces_openba`, training a new model in `openba.data.tokenizer_training`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from openba.errors import UserError
from openba.tokenizer.pieces_openba import MODEL_FILE, Pieces, split_control_tokens

CONFIG_FILE = "tokenizer_config.json"
SWITCH = "whitespace_tokens"
"""Key of the switch in the config file, and field of the recipe."""

GROWN = "grown_tokens"
"""Key of the tokens that were added for fine-tuning."""

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Token ids of a column of texts; row i has `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    """int32 `[tokens]`, the rows one after another."""
    offsets: np.ndarray
    """int64 `[rows + 1]`, from 0 to the number of tokens."""

    def row(self, number: int) -> np.ndarray:
        """Return the ids of a row, int32 `[tokens]`, a view."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]


class Tokenizer:
    """SentencePiece model with the release's appended control tokens and openba's whitespace tokens.

    Raw text such as "<S>" or "</s>" never becomes a control token, except in `encode` with `control_tokens`.
    """

    pad = Pieces.pad
    eos = Pieces.eos
    unknown = Pieces.unknown

    def __init__(self, path: Path, whitespace: bool = False, grown: Sequence[str] = ()) -> None:
        """Read a model.

        Args:
            path: `.model` file.
            whitespace: white space has tokens and text is kept byte for byte.
            grown: tokens that were added for fine-tuning, see `Pieces`.

        Raises:
            UserError: the file is not there, not a SentencePiece model, or numbered unlike mT5's.
        """
        self.path = path
        try:
            self.pieces = Pieces(path.read_bytes(), whitespace, grown)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}; give the mT5 spiece.model or one trained here") from None
        self.base = self.pieces.base
        self.size = self.pieces.size
        self.whitespace = whitespace
        self.grown = self.pieces.grown
        self.sentinel = self.pieces.sentinel
        self.mode = self.pieces.mode
        self._control_tokens = self.pieces.control_tokens()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a tokenizer step's folder or of an exported model's."""
        return cls(folder / MODEL_FILE, *_read_config(folder / CONFIG_FILE))

    def encode(self, text: str, *, control_tokens: bool = False) -> list[int]:
        """Return the ids of a text, without adding any.

        Args:
            text: the text.
            control_tokens: encode "<S>", "</s>", "<extra_id_7>" and the like as control tokens.
        """
        if not control_tokens:
            return self.pieces.encode(text)
        ids: list[int] = []
        for part in split_control_tokens(text, self._control_tokens):
            ids += [part] if isinstance(part, int) else self.pieces.encode(part)
        return ids

    def encode_arrow(self, column: pa.Array | pa.ChunkedArray) -> Encoded:
        """Return the ids of a string column, equal to `encode` of each row.

        Raises:
            UserError: a row is null.
        """
        if column.null_count:
            row = pa.compute.index(column.is_null(), True).as_py()
            raise UserError(f"row {row}: the text is null; drop the row or give it a text")
        # As UTF-8 bytes: SentencePiece takes them without a Python string per row.
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        rows: list[np.ndarray] = []
        for chunk in chunks:
            rows += self.pieces.encode_rows(chunk.cast(pa.large_binary()).to_pylist())
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)), out=offsets[1:])
        return Encoded(np.concatenate([np.empty(0, dtype=np.int32), *rows]), offsets)

    def decode(self, ids: Ids) -> str:
        """Return the text of ids without control tokens; with whitespace tokens the inverse of `encode`.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        return self._to_text(self.pieces.decode, ids)

    def show(self, ids: Ids) -> str:
        """Return the text of ids with control tokens written out, for people; raises as `decode`."""
        return self._to_text(self.pieces.show, ids)

    def _to_text(self, convert: Callable[[Ids], str], ids: Ids) -> str:
        try:
            return convert(ids)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}; are these ids another tokenizer's, or labels?") from None


def _read_config(path: Path) -> tuple[bool, list[str]]:
    """Return whether a tokenizer config switches the whitespace tokens on, and the tokens that were added."""
    if not path.exists():
        return False, []
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        is_on = config.get(SWITCH, False)
        grown_tokens = config.get(GROWN, [])
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a JSON object ({error}); rebuild the step that wrote it") from None
    if not isinstance(is_on, bool):
        raise UserError(f"{path}: {SWITCH}: {is_on!r} is neither true nor false")
    if not isinstance(grown_tokens, list) or not all(isinstance(token, str) for token in grown_tokens):
        raise UserError(f"{path}: {GROWN}: not a list of tokens; rebuild the step that wrote it")
    return is_on, grown_tokens
