"""The ids of text: SentencePiece pieces, the release's appended tokens, and our whitespace tokens.

Owns the layout of ids, encoding and decoding, and the chat template, for `openba.tokenizer.tokenizer` and
for the transformers class beside it alike, so that the two cannot differ. An exported folder holds a
copy of this file: it imports nothing of openba and nothing of transformers, and errors are ValueError.

Layout: the model's pieces (0 pad, 1 </s>, 2 <unk>), <extra_id_99>..<extra_id_0>, <R> <S> <X>; with
the mT5 file (250,100 pieces) <extra_id_0> = 250199 and <R> = 250200, the released ids. The tokens that
make it lossless follow from 250203 on: white space and full-width forms. They are ours: the release
recorded neither strings nor ids of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import sentencepiece as spm

MODEL_FILE = "spiece.model"
SENTINELS = 100
MODES = ("R", "S", "X")
WHITESPACE = ("\n", "\t", "\u2581" * 2, "\u2581" * 4, "\u2581" * 8)
"""Newline, tab, and runs of spaces, so that code keeps its layout (paper section 6.2). A space is written
as SentencePiece's U+2581: as a plain space such a piece is in the model, but never used."""
FULL_WIDTH = ("\u3000", *map(chr, range(0xFF01, 0xFF5E)))
"""The ideographic space and full-width ASCII up to U+FF5D. mT5's normalisation folds them, so no piece
spells them; in bytes each takes three tokens, and Chinese 14 to 28 % more tokens (measured)."""
LOSSLESS = WHITESPACE + FULL_WIDTH
"""What the switch appends, in the order of the ids."""

CHAT_TEMPLATE = (
    "<S>{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim }} "
    "{% elif message['role'] in ('user', 'human') %}Human: {{ message['content'] | trim }} "
    "{% elif message['role'] in ('assistant', 'gpt') %}Assistant: {{ message['content'] | trim }} "
    "{% else %}{{ raise_exception('role ' + message['role'] + ' is not one of system, user, assistant') }}"
    "{% endif %}{% endfor %}Assistant:<extra_id_0></s>"
)
"""The paper's form of a conversation (6.1), as `openba.data.tasks` writes it for training (contents
without white space around them), in the wrapper of a prompt. It asks for the answer whether or not
`add_generation_prompt` is set: an answer is the decoder's, never the encoder's."""
PROMPT_START, PROMPT_END = "<S>", "<extra_id_0></s>"

_SPACE_SIGN = "\u2581"
_SPACE_SIGN_BYTES = [3 + byte for byte in _SPACE_SIGN.encode()]


class Pieces:
    """A SentencePiece model with the appended blocks. `whitespace` switches the third block on."""

    pad, eos, unknown = 0, 1, 2
    _appended = SENTINELS + len(MODES)

    def __init__(self, model: bytes, whitespace: bool = False) -> None:
        """Args: the bytes of a `.model` file; the switch.

        Raises:
            ValueError: not a SentencePiece model, another numbering than mT5's, or, with the switch, no byte
            pieces or one of the tokens as a piece.
        """
        self.model = _loaded(model)
        found = (self.model.pad_id(), self.model.eos_id(), self.model.unk_id())
        if found != (self.pad, self.eos, self.unknown):
            raise ValueError(f"pad, </s> and <unk> are pieces {found}, not (0, 1, 2) as in mT5's")
        self.base = self.model.get_piece_size()
        self.whitespace = whitespace
        self.size = self.base + self._appended + (len(LOSSLESS) if whitespace else 0)
        if whitespace:
            if self.base <= 258 or not (self.model.is_byte(3) and self.model.is_byte(258)):
                raise ValueError("whitespace tokens need byte pieces at 3..258, as in mT5's")
            try:
                self.model = _loaded(model + _code_fields())
            except ValueError as error:
                raise ValueError(f"it takes no whitespace tokens: {error}; turn them off") from None

    def sentinel(self, k: int) -> int:
        """Id of <extra_id_k>, k in 0..99; the block is stored in falling order."""
        if not 0 <= k < SENTINELS:
            raise ValueError(f"sentinel {k} is not in 0..{SENTINELS - 1}")
        return self.base + SENTINELS - 1 - k

    def mode(self, name: str) -> int:
        """Id of <R>, <S> or <X>."""
        return self.base + SENTINELS + MODES.index(name)

    def control_tokens(self) -> dict[str, int]:
        """String -> id of every token that raw text never becomes."""
        named = {"<pad>": self.pad, "</s>": self.eos, "<unk>": self.unknown}
        sentinels = {f"<extra_id_{k}>": self.sentinel(k) for k in reversed(range(SENTINELS))}
        return named | sentinels | {f"<{name}>": self.mode(name) for name in MODES}

    def encode(self, text: str) -> list[int]:
        """Ids of raw text; no control token is added or recognised."""
        if not self.whitespace:
            return self.model.encode(text)
        # SentencePiece writes a space as U+2581 and would read that character back as a space.
        first, *others = text.split(_SPACE_SIGN)
        ids = self.model.encode(first)
        for part in others:
            ids += _SPACE_SIGN_BYTES + self.model.encode(part)
        return [self._from_model(i) for i in ids]

    def encode_rows(self, rows: list[bytes]) -> list[np.ndarray]:
        """Ids of many texts, each UTF-8, as int32 arrays: what `encode` gives."""
        # One thread: callers share the cores out among processes.
        encoded = self.model.encode(rows, return_type="numpy", num_threads=1)
        if not self.whitespace:
            return encoded
        sign = _SPACE_SIGN.encode()
        return [
            np.array(self.encode(text.decode()), dtype=np.int32)
            if sign in text
            else np.where(ids >= self.base, ids + self._appended, ids)
            for text, ids in zip(rows, encoded, strict=True)
        ]

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """Encoder ids of an instruction, `<S> ids <extra_id_0> </s>`, as in the release."""
        return [self.mode("S"), *ids, self.sentinel(0), self.eos]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the pieces; control tokens are left out.

        Raises:
            ValueError: an id is not in 0..size - 1; the message names it and its place.
        """
        plain = self.checked(ids)
        above = plain >= self.base + self._appended
        text = above | (plain > self.unknown) & (plain < self.base)
        return self.model.decode((plain - above * self._appended)[text].tolist())

    def show(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text with the control tokens written out; same errors as `decode`."""
        names = {i: token for token, i in self.control_tokens().items()}
        shown: list[str] = []
        run: list[int] = []
        for i in [*self.checked(ids).tolist(), self.pad]:
            if self.is_text(i):
                run.append(i)
                continue
            # A run's leading space is dropped by decode where SentencePiece puts one before every text.
            starts_with_space = run and shown and not self.whitespace and self.piece(run[0])[0] == _SPACE_SIGN
            text = self.decode(run)
            shown += [" " if starts_with_space and text[:1] != " " else "", text, names[i]]
            run = []
        return "".join(shown[:-1])

    def checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The ids as int64, if each is in the vocabulary; else the error of `decode`."""
        plain = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = np.flatnonzero((plain < 0) | (plain >= self.size))
        if len(outside):
            at = int(outside[0])
            raise ValueError(f"id {plain[at]} at position {at} is not in 0..{self.size - 1}")
        return plain

    def is_text(self, i: int) -> bool:
        """Whether the id stands for text: a piece of the model or a whitespace token."""
        return self.unknown < i < self.base or i >= self.base + self._appended

    def piece(self, i: int) -> str:
        """The piece of an id that `is_text`, as SentencePiece writes it."""
        return self.model.id_to_piece(self._to_model(i))

    def id(self, piece: str) -> int:
        """Id of a piece; `unknown` for what is none."""
        return self._from_model(self.model.piece_to_id(piece))

    def _from_model(self, i: int) -> int:
        return i if i < self.base else i + self._appended

    def _to_model(self, i: int) -> int:
        return i if i < self.base else i - self._appended


def parse(text: str, tokens: dict[str, int]) -> list[str | int]:
    """Raw text between control tokens, and the control tokens' ids, in order."""
    pattern = re.compile("(" + "|".join(map(re.escape, tokens)) + ")")
    return [tokens.get(part, part) for part in pattern.split(text) if part]


def _loaded(model: bytes) -> spm.SentencePieceProcessor:
    processor = spm.SentencePieceProcessor()
    try:
        if not model:
            raise ValueError("it is empty")
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"not a readable SentencePiece model ({line})") from None
    return processor


def _code_fields() -> bytes:
    """What makes a model lossless, in protobuf's wire format: the whitespace pieces, no normaliser.

    A protobuf message is merged with what follows it, so the bytes are simply appended; SentencePiece's
    own message classes would need the protobuf package. Fields: ModelProto.pieces = 1 {piece = 1, score
    = 2, type = 3: USER_DEFINED = 4}, normalizer_spec = 3 {name = 1, precompiled_charsmap = 2,
    add_dummy_prefix = 3, remove_extra_whitespaces = 4}.
    """

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    pieces = [field(1, piece.encode()) + b"\x15\0\0\0\0\x18\x04" for piece in LOSSLESS]
    normaliser = field(1, b"identity") + field(2, b"") + b"\x18\x00\x20\x00"
    return b"".join(field(1, piece) for piece in pieces) + field(3, normaliser)
