"""Layout of token ids, encoding, decoding and the chat template.

Both `openba.tokenizer.tokenizer` and the transformers class use this module, so the two cannot differ. An
exported folder has a copy of this file: it imports neither openba nor transformers and raises ValueError.

Layout: the SentencePiece model's pieces (0 pad, 1 </s>, 2 <unk>), <extra_id_99>..<extra_id_0>, <R> <S> <X>.
With the mT5 file (250,100 pieces) <extra_id_0> = 250199 and <R> = 250200, the released ids. Tokens of white
space and full-width forms, which make the tokenizer lossless, follow from 250203 on. They are openba's own:
the release recorded neither strings nor ids of its whitespace tokens.

Two forms have them. `whitespace` is of a model that is trained with them from the beginning: a text begins
without SentencePiece's added space. `grown` are tokens that a trained tokenizer gets for fine-tuning: text
that it could write before keeps its ids, the added space included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import sentencepiece as spm

MODEL_FILE = "spiece.model"
SENTINELS = 100
MODES = ("R", "S", "X")
WHITESPACE = ("\n", "\t", "\u2581" * 2, "\u2581" * 4, "\u2581" * 8)
"""Newline, tab, and runs of spaces, so that code keeps its layout (paper section 6.2). A space is written
as SentencePiece's U+2581; pieces with plain spaces are never used by SentencePiece."""
FULL_WIDTH = ("\u3000", *map(chr, range(0xFF01, 0xFF5E)))
"""The ideographic space and full-width ASCII up to U+FF5D. mT5's normalisation folds them, so they are in no
piece. As bytes each takes three tokens, and Chinese text 14 to 28 % more tokens (measured)."""
LOSSLESS = WHITESPACE + FULL_WIDTH
"""Pieces appended for a lossless tokenizer, in the order of the ids."""

CHAT_TEMPLATE = (
    "<S>{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim }} "
    "{% elif message['role'] in ('user', 'human') %}Human: {{ message['content'] | trim }} "
    "{% elif message['role'] in ('assistant', 'gpt') %}Assistant: {{ message['content'] | trim }} "
    "{% else %}{{ raise_exception('role ' + message['role'] + ' is not one of system, user, assistant') }}"
    "{% endif %}{% endfor %}Assistant:<extra_id_0></s>"
)
"""Conversation in the paper's form (section 6.1), equal to that of the training data, wrapped as a prompt. It
ends with "Assistant:" whether or not `add_generation_prompt` is set, since the decoder writes the answer."""
PROMPT_START = "<S>"
PROMPT_END = "<extra_id_0></s>"

_SPACE_SIGN = "\u2581"
_SPACE_SIGN_BYTES = [3 + byte for byte in _SPACE_SIGN.encode()]


class Pieces:
    """SentencePiece model with the appended sentinels, modes and, if lossless, whitespace tokens."""

    pad = 0
    eos = 1
    unknown = 2
    _appended = SENTINELS + len(MODES)

    def __init__(self, model: bytes, whitespace: bool = False, grown: Sequence[str] = ()) -> None:
        """Read a model.

        Args:
            model: content of a `.model` file.
            whitespace: append the whitespace tokens and do not normalise.
            grown: more tokens, appended after those. With a newline among them text is not normalised.

        Raises:
            ValueError: not a SentencePiece model, another numbering than mT5's, no byte pieces where text is
                not normalised, or one of the tokens is a piece already.
        """
        self.model = _load_model(model)
        # The appended ids and the model's embedding rely on mT5's numbering.
        special_ids = (self.model.pad_id(), self.model.eos_id(), self.model.unk_id())
        if special_ids != (self.pad, self.eos, self.unknown):
            raise ValueError(f"pad, </s> and <unk> are pieces {special_ids}, not (0, 1, 2) as in mT5's")
        self.base = self.model.get_piece_size()
        self.whitespace = whitespace
        self.grown = tuple(grown)
        self.is_verbatim = whitespace or "\n" in self.grown
        """Whether text is not normalised, so that it comes back byte for byte."""
        added_pieces = (LOSSLESS if whitespace else ()) + self.grown
        self.size = self.base + self._appended + len(added_pieces)
        # Without normalisation unknown characters are encoded as bytes, so these must exist.
        has_bytes = self.base > 258 and self.model.is_byte(3) and self.model.is_byte(258)
        if self.is_verbatim and not has_bytes:
            raise ValueError("whitespace tokens need byte pieces at 3..258, as in mT5's")
        self._bytes = model + _fields(added_pieces, self.is_verbatim, keeps_prefix=not whitespace)
        if added_pieces:
            try:
                # Loaded again with the fields appended: SentencePiece cannot change a loaded model.
                self.model = _load_model(self._bytes)
            except ValueError as error:
                name = "whitespace tokens" if whitespace else "more tokens"
                raise ValueError(f"it takes no {name}: {error}; turn them off") from None

    @cached_property
    def _continuing(self) -> spm.SentencePieceProcessor:
        """The model for text that follows other text, and gets no added space."""
        return (
            self.model
            if self.whitespace
            else _load_model(self._bytes + _fields((), True, keeps_prefix=False))
        )

    def sentinel(self, number: int) -> int:
        """Return the id of <extra_id_number>, number in 0..99; the block is stored in falling order."""
        if not 0 <= number < SENTINELS:
            raise ValueError(f"sentinel {number} is not in 0..{SENTINELS - 1}")
        return self.base + SENTINELS - 1 - number

    def mode(self, name: str) -> int:
        """Return the id of <R>, <S> or <X>."""
        return self.base + SENTINELS + MODES.index(name)

    def control_tokens(self) -> dict[str, int]:
        """Return string -> id of all tokens that raw text never becomes."""
        special_ids = {"<pad>": self.pad, "</s>": self.eos, "<unk>": self.unknown}
        sentinels = {f"<extra_id_{number}>": self.sentinel(number) for number in reversed(range(SENTINELS))}
        return special_ids | sentinels | {f"<{name}>": self.mode(name) for name in MODES}

    def encode(self, text: str) -> list[int]:
        """Return the ids of raw text; no control token is added or recognised."""
        if not self.is_verbatim:
            return [self._from_model(model_id) for model_id in self.model.encode(text)]
        # SentencePiece writes a space as U+2581 and would decode that character as a space.
        first_part, *other_parts = text.split(_SPACE_SIGN)
        model_ids = self.model.encode(first_part)
        for part in other_parts:
            model_ids += _SPACE_SIGN_BYTES + self._continuing.encode(part)
        return [self._from_model(model_id) for model_id in model_ids]

    def encode_rows(self, rows: list[bytes]) -> list[np.ndarray]:
        """Return the ids of texts in UTF-8, int32 `[tokens]` each, equal to `encode`."""
        # One thread: callers run a process per core.
        encoded = self.model.encode(rows, return_type="numpy", num_threads=1)
        if not (self.whitespace or self.grown):
            return encoded
        # Only rows with the sign itself take the slow way over `encode`.
        space_sign = _SPACE_SIGN.encode()
        return [
            np.array(self.encode(text.decode()), dtype=np.int32)
            if self.is_verbatim and space_sign in text
            else np.where(model_ids >= self.base, model_ids + self._appended, model_ids)
            for text, model_ids in zip(rows, encoded, strict=True)
        ]

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """Return the encoder ids of an instruction, `<S> ids <extra_id_0> </s>`, as in the release."""
        return [self.mode("S"), *ids, self.sentinel(0), self.eos]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids without control tokens.

        Raises:
            ValueError: an id is not in 0..size - 1; the message has the id and its position.
        """
        token_ids = self.checked(ids)
        is_appended_text = token_ids >= self.base + self._appended
        is_text = is_appended_text | (token_ids > self.unknown) & (token_ids < self.base)
        return self.model.decode((token_ids - is_appended_text * self._appended)[is_text].tolist())

    def show(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids with control tokens written out; raises as `decode`."""
        # The final pad ends the last run of text.
        names = {token_id: token for token, token_id in self.control_tokens().items()}
        parts: list[str] = []
        text_run: list[int] = []
        for token_id in [*self.checked(ids).tolist(), self.pad]:
            if self.is_text(token_id):
                text_run.append(token_id)
                continue
            # `decode` drops the leading space of a run if SentencePiece adds one before every text.
            drops_space = text_run and parts and not self.whitespace
            starts_with_space = drops_space and self.piece(text_run[0])[0] == _SPACE_SIGN
            text = self.decode(text_run)
            parts += [" " if starts_with_space and text[:1] != " " else "", text, names[token_id]]
            text_run = []
        return "".join(parts[:-1])

    def checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the ids as int64 `[tokens]` if all are in the vocabulary; raises as `decode` otherwise."""
        token_ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = np.flatnonzero((token_ids < 0) | (token_ids >= self.size))
        if len(outside):
            position = int(outside[0])
            raise ValueError(f"id {token_ids[position]} at position {position} is not in 0..{self.size - 1}")
        return token_ids

    def is_text(self, token_id: int) -> bool:
        """Return whether an id is text: a piece of the model or a whitespace token."""
        return self.unknown < token_id < self.base or token_id >= self.base + self._appended

    def piece(self, token_id: int) -> str:
        """Return the piece of an id that is text, as SentencePiece writes it."""
        return self.model.id_to_piece(self._to_model(token_id))

    def id(self, piece: str) -> int:
        """Return the id of a piece, `unknown` if there is no such piece."""
        return self._from_model(self.model.piece_to_id(piece))

    def _from_model(self, model_id: int) -> int:
        return model_id if model_id < self.base else model_id + self._appended

    def _to_model(self, token_id: int) -> int:
        return token_id if token_id < self.base else token_id - self._appended


def split_control_tokens(text: str, tokens: dict[str, int]) -> list[str | int]:
    """Return the raw text between control tokens and the control tokens' ids, in order."""
    # A group in the pattern makes `split` return the control tokens too.
    pattern = re.compile("(" + "|".join(map(re.escape, tokens)) + ")")
    return [tokens.get(part, part) for part in pattern.split(text) if part]


def _load_model(model: bytes) -> spm.SentencePieceProcessor:
    processor = spm.SentencePieceProcessor()
    try:
        if not model:
            raise ValueError("it is empty")
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"not a readable SentencePiece model ({line})") from None
    return processor


def _fields(added_pieces: Sequence[str], is_verbatim: bool, *, keeps_prefix: bool) -> bytes:
    """Return protobuf fields that give a model more pieces and, if `is_verbatim`, no normaliser.

    `keeps_prefix` leaves it to the model whether a space is added before every text.

    Protobuf merges concatenated messages, so the bytes are appended to the model; SentencePiece's own message
    classes would need the protobuf package. Fields: ModelProto.pieces = 1 {piece = 1, score
    = 2, type = 3: USER_DEFINED = 4}, normalizer_spec = 3 {name = 1, precompiled_charsmap = 2,
    add_dummy_prefix = 3, remove_extra_whitespaces = 4}.
    """

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    spelt = [piece.replace(" ", _SPACE_SIGN).encode() for piece in added_pieces]
    pieces = [field(1, piece) + b"\x15\0\0\0\0\x18\x04" for piece in spelt]
    normaliser = field(1, b"identity") + field(2, b"") + (b"" if keeps_prefix else b"\x18\x00") + b"\x20\x00"
    return b"".join(field(1, piece) for piece in pieces) + (field(3, normaliser) if is_verbatim else b"")
