"""Text to token ids and back, from a tokenizer step's folder or an exported model's.

Owns the form of a tokenizer on disk (`spiece.model`, and the switch of the whitespace tokens in
`tokenizer_config.json`), columns of texts, and messages. The ids themselves are
`openba.tokenizer.pieces_openba`'s; training a model of our own is `openba.data.tokenizer_training`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from openba.errors import UserError
from openba.tokenizer.pieces_openba import MODEL_FILE, Pieces, parse

CONFIG_FILE = "tokenizer_config.json"
SWITCH = "whitespace_tokens"
"""Key of the switch in the config file, and field of the recipe."""

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Ids of a column of texts; row i has `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    """int32 `[tokens]`, the rows one after another."""
    offsets: np.ndarray
    """int64 `[rows + 1]`, from 0 to the number of tokens."""

    def row(self, i: int) -> np.ndarray:
        """Ids of row `i`, int32: a view."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


class Tokenizer:
    """A SentencePiece model with the release's appended control tokens and our whitespace tokens.

    Raw text such as "<S>" or "</s>" never becomes a control token, unless `encode` is asked to.
    """

    pad, eos, unknown = Pieces.pad, Pieces.eos, Pieces.unknown

    def __init__(self, path: Path, whitespace: bool = False) -> None:
        """Args: the `.model` file; whether white space has tokens and text is kept byte for byte.

        Raises:
            UserError: the file is not there, not a SentencePiece model, or numbered unlike mT5's.
        """
        self.path = path
        try:
            self.pieces = Pieces(path.read_bytes(), whitespace)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}; give the mT5 spiece.model or one trained here") from None
        self.base, self.size = self.pieces.base, self.pieces.size
        self.whitespace = whitespace
        self.sentinel, self.mode = self.pieces.sentinel, self.pieces.mode
        self._tokens = self.pieces.control_tokens()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From a tokenizer step's directory, or an exported model's."""
        return cls(folder / MODEL_FILE, _switch(folder / CONFIG_FILE))

    def encode(self, text: str, *, control_tokens: bool = False) -> list[int]:
        """Ids of a text; nothing is added.

        Args:
            text: the text.
            control_tokens: read "<S>", "</s>", "<extra_id_7>" and the like as what they name.
        """
        if not control_tokens:
            return self.pieces.encode(text)
        ids: list[int] = []
        for part in parse(text, self._tokens):
            ids += [part] if isinstance(part, int) else self.pieces.encode(part)
        return ids

    def encode_arrow(self, column: pa.Array | pa.ChunkedArray) -> Encoded:
        """Ids of a string column, as `encode` gives them for each row; no Python object per token.

        Raises:
            UserError: a row is null.
        """
        if column.null_count:
            row = pa.compute.index(column.is_null(), True).as_py()
            raise UserError(f"row {row}: the text is null; drop the row or give it a text")
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        rows: list[np.ndarray] = []
        for chunk in chunks:
            rows += self.pieces.encode_rows(chunk.cast(pa.large_binary()).to_pylist())
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)), out=offsets[1:])
        return Encoded(np.concatenate([np.empty(0, dtype=np.int32), *rows]), offsets)

    def decode(self, ids: Ids) -> str:
        """Text of the ids, control tokens left out. With whitespace tokens the inverse of `encode`.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        return self._told(self.pieces.decode, ids)

    def show(self, ids: Ids) -> str:
        """Text with the control tokens written out, for people; same error."""
        return self._told(self.pieces.show, ids)

    def _told(self, function: Callable[[Ids], str], ids: Ids) -> str:
        try:
            return function(ids)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}; are these ids another tokenizer's, or labels?") from None


def _switch(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get(SWITCH, False)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a JSON object ({error}); rebuild the step that wrote it") from None
    if not isinstance(value, bool):
        raise UserError(f"{path}: {SWITCH}: {value!r} is neither true nor false")
    return value
