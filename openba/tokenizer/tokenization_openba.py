"""`OpenBATokenizer`: the same ids for transformers, with the prompt's wrapper and the chat template.

Owns what transformers asks of a tokenizer. The ids are `pieces_openba`'s. An exported folder holds a copy
of both files, so that `AutoTokenizer.from_pretrained(folder, trust_remote_code=True)` works without
openba; hence no import of it. `openba.tokenizer.files` writes such a folder.

Raw text never becomes a control token: `split_special_tokens` is on by default, and off is asking for it.
Tokens that a user adds are read in raw text, unless they are added as special tokens.
"""

from __future__ import annotations

import bisect
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import LARGE_INTEGER

from .pieces_openba import CHAT_TEMPLATE, MODEL_FILE, PROMPT_END, PROMPT_START, Pieces

_RAW = "\0"  # before a piece of text that is spelt like a control token
_WRAPPER_TOKENS = 3
"""`<S>`, `<extra_id_0>` and `</s>` around a prompt's text."""


class OpenBATokenizer(PreTrainedTokenizer):
    """The mT5 SentencePiece file, or one trained here, as a transformers tokenizer.

    `tokenizer(text)` appends `</s>`, as T5's does. `tokenizer(text, prompt=True)` gives what the encoder
    reads, `<S> text <extra_id_0> </s>` (release), and cuts the text, not the wrapper, to `max_length`.
    `apply_chat_template` gives the same for a conversation; no content can bring a control token in.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    _auto_class = "AutoTokenizer"

    def __init__(self, vocab_file: str, whitespace_tokens: bool = False, **kwargs: Any) -> None:
        """Read the model.

        Args:
            vocab_file: path of `spiece.model`.
            whitespace_tokens: tokens for newline, tab and runs of spaces, and no normalisation.
            **kwargs: transformers' own.

        Raises:
            OSError: the file is not there.
            ValueError: it is not a SentencePiece model, or numbered unlike mT5's.
        """
        if not isinstance(whitespace_tokens, bool):
            raise ValueError(f"whitespace_tokens: {whitespace_tokens!r} is neither true nor false")
        self.vocab_file = vocab_file
        try:
            self.pieces = Pieces(Path(vocab_file).read_bytes(), whitespace_tokens)
        except ValueError as error:
            raise ValueError(f"{vocab_file}: {error}; give the mT5 spiece.model or one of openba's") from None
        self.whitespace_tokens = whitespace_tokens
        control = self.pieces.control_tokens()
        self._added_tokens_decoder = {i: AddedToken(name, special=True) for name, i in control.items()}
        named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        kwargs = {**named, "split_special_tokens": True, "chat_template": CHAT_TEMPLATE} | kwargs
        # A released or mT5 config names some of them, or none; all of them are special whatever it names.
        given: Any = kwargs.pop("extra_special_tokens", None) or []
        extra = [name for name in control if name not in named.values()]
        kwargs["extra_special_tokens"] = [*extra, *(token for token in given if str(token) not in control)]
        super().__init__(whitespace_tokens=whitespace_tokens, special_tokens_pattern="eos", **kwargs)

    @property
    def vocab_size(self) -> int:
        """Ids in use, control and whitespace tokens included; the model pads its embedding beyond."""
        return self.pieces.size

    def get_vocab(self) -> dict[str, int]:
        """Token -> id of everything."""
        names = {i: token.content for i, token in self._added_tokens_decoder.items()}
        return {names.get(i) or self._token(i): i for i in range(self.vocab_size)} | {
            name: i for i, name in names.items() if i >= self.vocab_size
        }

    def _update_total_vocab_size(self) -> None:
        # transformers counts a dictionary of the whole vocabulary, 0.3 s for mT5's.
        self.total_vocab_size = self.vocab_size + sum(
            i >= self.vocab_size for i in self._added_tokens_decoder
        )

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        if new_tokens:
            return super()._add_tokens(new_tokens, special_tokens)
        self._update_trie()
        self._update_total_vocab_size()
        return 0

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]  # as slow tokenizers
        """Return the tokens of raw text.

        With `split_special_tokens` control tokens in the text stay text, but tokens that the user added are
        read; without it both are read.
        """
        if not kwargs.pop("split_special_tokens", self.split_special_tokens):
            return super().tokenize(text, split_special_tokens=False, **kwargs)
        added = self._readable_added_tokens()
        if not added:
            return self._tokenize(text)
        tokens: list[str] = []
        position = 0
        for match in re.finditer("|".join(map(_pattern, added)), text):
            tokens += self._tokenize(text[position : match.start()])
            tokens.append(added[(match.lastindex or 1) - 1].content)
            position = match.end()
        return tokens + self._tokenize(text[position:])

    def _readable_added_tokens(self) -> list[AddedToken]:
        """Return the tokens that a user added as plain ones, the longest first."""
        added = (token for index, token in self._added_tokens_decoder.items() if index >= self.vocab_size)
        return sorted((token for token in added if not token.special), key=lambda token: -len(token.content))

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._token(i) for i in self.pieces.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.id(token.removeprefix(_RAW))

    def _convert_id_to_token(self, index: int) -> str:
        return self._token(int(self.pieces.checked([index])[0]))

    def _token(self, index: int) -> str:
        piece = self.pieces.piece(index)
        return _RAW + piece if piece in self._added_tokens_encoder and self.pieces.is_text(index) else piece

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens; control tokens stand as they are written."""
        ids: Any = self.convert_tokens_to_ids(tokens)
        return self._decode(ids)

    def _decode(  # type: ignore[override]  # cleaning up is asked for by no one here
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text = self.pieces.decode if skip_special_tokens else self.pieces.show
        shown = []
        # Tokens that the user added stand between runs of ids that the pieces know.
        for beyond, run in groupby(ids, lambda i: i >= self.vocab_size and i in self._added_tokens_decoder):
            if not beyond:
                shown.append(text(list(run)))
                continue
            added = [self._added_tokens_decoder[i] for i in run]
            shown += [token.content for token in added if not (skip_special_tokens and token.special)]
        return "".join(shown)

    def _encode_plus(  # type: ignore[override]  # the other arguments are handed on as they come
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        prompt: bool = False,
        rendered: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        if not (prompt or rendered):
            return super()._encode_plus(text, text_pair, add_special_tokens, **kwargs)
        if text_pair is not None:
            raise ValueError("a prompt is one text; join the pair before")
        is_truncated = kwargs["truncation_strategy"].value != "do_not_truncate"
        max_length = kwargs["max_length"] if is_truncated else None
        split = kwargs.get("split_special_tokens", self.split_special_tokens)
        texts = [text] if isinstance(text, str) else text
        ids: Any = [self._prompt(each, split, rendered, max_length) for each in texts]
        return super()._encode_plus(ids[0] if isinstance(text, str) else ids, None, False, **kwargs)

    def _prompt(self, text: str, split: bool, rendered: bool, max_length: int | None) -> list[int]:
        if rendered:
            if not (text.startswith(PROMPT_START) and text.endswith(PROMPT_END)):
                raise ValueError(f"a chat template starts with {PROMPT_START} and ends with {PROMPT_END}")
            text, split = text[len(PROMPT_START) : -len(PROMPT_END)], True
        ids: Any = self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens=split))
        if max_length is not None:
            text_length = max(0, max_length - _WRAPPER_TOKENS)
            # Of a conversation the end stays, where the question is; of any other text the side that
            # `truncation_side` does not cut.
            is_cut_on_the_left = rendered or self.truncation_side == "left"
            ids = ids[max(0, len(ids) - text_length) :] if is_cut_on_the_left else ids[:text_length]
        return self.pieces.prompt(ids)

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The encoder's side of a conversation, which asks for the assistant's next answer.

        As transformers', with two differences: contents are plain text whatever they hold, and truncation
        drops the oldest turns, whoever speaks, then a system message, then the beginning of what remains.
        A content may be a list of text parts, which are joined.

        Raises:
            ValueError: a content has a part that is no text; `tools` or `documents` with the shipped
                template, which has no place for them; truncation to a length that nothing states.
        """
        template = kwargs.get("chat_template")
        for name in ("tools", "documents"):
            if kwargs.get(name) and name not in (template or self.chat_template):
                raise ValueError(
                    f"{name}: the chat template has no place for them; describe them in the system message"
                )
        kwargs["sanitize_control_tokens"] = False  # nothing in a content is read as a token anyway
        kwargs["tokenizer_kwargs"] = {**(kwargs.get("tokenizer_kwargs") or {}), "rendered": True}
        is_batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations = [
            _with_joined_parts(each) for each in (conversation if is_batched else [conversation])
        ]
        if kwargs.get("truncation") and kwargs.get("tokenize", True):
            kwargs["max_length"] = self._stated_length(kwargs.get("max_length"))
            conversations = [self._newest(each, kwargs["max_length"], template) for each in conversations]
        joined: Any = conversations if is_batched else conversations[0]
        return super().apply_chat_template(joined, **kwargs)

    def _stated_length(self, max_length: int | None) -> int:
        """Return the length to truncate to: the one that is asked for, or the model's.

        Raises:
            ValueError: there is neither.
        """
        if max_length is not None:
            return max_length
        if self.model_max_length > LARGE_INTEGER:
            raise ValueError("truncation: no length is stated; give max_length or set model_max_length")
        return self.model_max_length

    def _newest(
        self, messages: Sequence[Mapping[str, Any]], max_length: int, template: str | None
    ) -> list[Mapping[str, Any]]:
        """Drop as few of the oldest turns as it takes to fit `max_length` ids; the last turn always stays."""
        turns: list[int] = []
        for position, message in enumerate(messages):
            if message["role"] in ("user", "human") or (message["role"] != "system" and not turns):
                turns.append(position)

        def without(count: int) -> list[Mapping[str, Any]]:
            if count == 0:
                return list(messages)
            start = turns[-1] if count == len(turns) else turns[count]
            return list(
                messages[start:] if count == len(turns) else [*messages[: turns[0]], *messages[start:]]
            )

        def fits(count: int) -> bool:
            ids = self.apply_chat_template(without(count), chat_template=template, return_dict=False)
            return len(ids) <= max_length

        return without(bisect.bisect_left(range(len(turns)), True, key=fits))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the SentencePiece file into a folder."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{MODEL_FILE}"
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _pattern(token: AddedToken) -> str:
    """Return a regular expression of an added token, its text as the one group, obeying its options."""
    before = r"\s*" if token.lstrip else ""
    after = r"\s*" if token.rstrip else ""
    edges = (r"(?<!\w)", r"(?!\w)") if token.single_word else ("", "")
    return f"{before}{edges[0]}({re.escape(token.content)}){edges[1]}{after}"


def _with_joined_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return messages whose contents are strings: the text parts of a content are joined.

    Raises:
        ValueError: a part is no text; names the message.
    """
    joined: list[Mapping[str, Any]] = []
    for number, message in enumerate(messages):
        content = message["content"]
        if not isinstance(content, list):
            joined.append(message)
            continue
        texts = [part["text"] for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(texts) < len(content):
            raise ValueError(f"message {number}: a part of its content is no text; give text parts only")
        joined.append({**message, "content": "".join(texts)})
    return joined
