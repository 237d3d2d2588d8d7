"""`OpenBATokenizer`: openba's tokenizer as a transformers class, with prompt form and chat template.

Encoding itself is in `pieces_openba`. An exported folder has a copy of both files, so that
`AutoTokenizer.from_pretrained(folder, trust_remote_code=True)` works without openba; hence nothing of openba
is imported. `openba.tokenizer.files` writes such a folder.

Raw text never becomes a control token unless `split_special_tokens` is switched off. Tokens that a user adds
are recognised in raw text, unless they are added as special tokens.
"""

from __future__ import annotations

import bisect
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import LARGE_INTEGER, EncodedInput, PreTokenizedInput, TextInput

from .pieces_openba import CHAT_TEMPLATE, MODEL_FILE, PROMPT_END, PROMPT_START, Pieces

_RAW = "\0"  # prefix of a piece of text that is spelt like a control token
_PROMPT_TOKENS = 3  # <S>, <extra_id_0> and </s> around a prompt's text
Input = TextInput | PreTokenizedInput | EncodedInput
Message = Mapping[str, str | list[dict[str, str]]]
"""One turn: `role`, and `content` as text or as a list of text parts."""


class OpenBATokenizer(PreTrainedTokenizer):
    """transformers tokenizer of a SentencePiece file of mT5 or of openba.

    `tokenizer(text)` appends `</s>`, as T5's does. `tokenizer(text, prompt=True)` returns the encoder's
    input, `<S> text <extra_id_0> </s>` (release), and truncates the text to `max_length`, not the tokens
    around it.
    `apply_chat_template` does the same for a conversation; no content can become a control token.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str,
        whitespace_tokens: bool = False,
        grown_tokens: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        """Read the model.

        Args:
            vocab_file: path of `spiece.model`.
            whitespace_tokens: tokens for newline, tab and runs of spaces, and no normalisation.
            grown_tokens: tokens that were added for fine-tuning, see `Pieces`.
            **kwargs: transformers' own.

        Raises:
            OSError: the file is not there.
            ValueError: it is not a SentencePiece model, or numbered unlike mT5's.
        """
        if not isinstance(whitespace_tokens, bool):
            raise ValueError(f"whitespace_tokens: {whitespace_tokens!r} is neither true nor false")
        self.vocab_file = vocab_file
        try:
            self.pieces = Pieces(Path(vocab_file).read_bytes(), whitespace_tokens, grown_tokens)
        except ValueError as error:
            raise ValueError(f"{vocab_file}: {error}; give the mT5 spiece.model or one of openba's") from None
        self.whitespace_tokens = whitespace_tokens
        control_tokens = self.pieces.control_tokens()
        # Set before the base class counts the vocabulary and looks up its named tokens.
        self._added_tokens_decoder = {
            token_id: AddedToken(name, special=True) for name, token_id in control_tokens.items()
        }
        named_tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        defaults = {**named_tokens, "split_special_tokens": True, "chat_template": CHAT_TEMPLATE}
        for name, value in defaults.items():
            kwargs.setdefault(name, value)
        # A config of the release or of mT5 names some of the control tokens or none; all of them are special.
        user_tokens = kwargs.pop("extra_special_tokens", None) or []
        extra_tokens = [name for name in control_tokens if name not in named_tokens.values()]
        extra_tokens += [token for token in user_tokens if str(token) not in control_tokens]
        kwargs["extra_special_tokens"] = extra_tokens
        super().__init__(
            whitespace_tokens=whitespace_tokens, grown_tokens=list(grown_tokens),
            special_tokens_pattern="eos", **kwargs,
        )  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """Number of ids, control and whitespace tokens included; the model's embedding has more rows."""
        return self.pieces.size

    def get_vocab(self) -> dict[str, int]:
        """Return token -> id for the entire vocabulary."""
        names = {token_id: token.content for token_id, token in self._added_tokens_decoder.items()}
        own_tokens = {
            names.get(token_id) or self._token(token_id): token_id for token_id in range(self.vocab_size)
        }
        user_tokens = {name: token_id for token_id, name in names.items() if token_id >= self.vocab_size}
        return own_tokens | user_tokens

    def _update_total_vocab_size(self) -> None:
        # transformers would build a dictionary of the entire vocabulary to count it: 0.3 s for mT5's.
        user_token_count = sum(token_id >= self.vocab_size for token_id in self._added_tokens_decoder)
        self.total_vocab_size = self.vocab_size + user_token_count

    def _add_tokens(self, new_tokens: list[str] | list[AddedToken], special_tokens: bool = False) -> int:
        # The base class adds the special tokens once more at its end, with nothing new: only update the trie.
        if new_tokens:
            return super()._add_tokens(new_tokens, special_tokens)
        self._update_trie()
        self._update_total_vocab_size()
        return 0

    def tokenize(self, text: str, **kwargs: bool) -> list[str]:  # type: ignore[override]  # as slow tokenizers
        """Return the tokens of raw text.

        With `split_special_tokens` control tokens in the text stay text, but tokens that the user added are
        recognised; without it both are.
        """
        if not kwargs.pop("split_special_tokens", self.split_special_tokens):
            return super().tokenize(text, split_special_tokens=False, **kwargs)
        user_tokens = self._plain_user_tokens()
        if not user_tokens:
            return self._tokenize(text)
        tokens: list[str] = []
        position = 0
        for match in re.finditer("|".join(map(_pattern, user_tokens)), text):
            tokens += self._tokenize(text[position : match.start()])
            tokens.append(user_tokens[(match.lastindex or 1) - 1].content)
            position = match.end()
        return tokens + self._tokenize(text[position:])

    def _plain_user_tokens(self) -> list[AddedToken]:
        """Return the tokens that a user added as plain ones, the longest first."""
        user_tokens = [
            token
            for token_id, token in self._added_tokens_decoder.items()
            if token_id >= self.vocab_size and not token.special
        ]
        return sorted(user_tokens, key=lambda token: -len(token.content))

    def _tokenize(self, text: str, **kwargs: object) -> list[str]:
        return [self._token(token_id) for token_id in self.pieces.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.id(token.removeprefix(_RAW))

    def _convert_id_to_token(self, index: int) -> str:
        return self._token(int(self.pieces.checked([index])[0]))

    def _token(self, index: int) -> str:
        piece = self.pieces.piece(index)
        return _RAW + piece if piece in self._added_tokens_encoder and self.pieces.is_text(index) else piece

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens, control tokens written out."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(  # type: ignore[override]  # clean_up_tokenization_spaces is among the other arguments
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: object
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        to_text = self.pieces.decode if skip_special_tokens else self.pieces.show
        parts = []
        # Tokens that the user added separate runs of ids that the pieces can decode.
        for is_user_token, run in groupby(ids, self._is_user_token):
            if not is_user_token:
                parts.append(to_text(list(run)))
                continue
            user_tokens = [self._added_tokens_decoder[token_id] for token_id in run]
            parts += [token.content for token in user_tokens if not (skip_special_tokens and token.special)]
        return "".join(parts)

    def _is_user_token(self, token_id: int) -> bool:
        return token_id >= self.vocab_size and token_id in self._added_tokens_decoder

    def _encode_plus(  # type: ignore[override]  # the other arguments are passed on unchanged
        self,
        text: Input,
        text_pair: Input | None = None,
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
        # transformers takes a batch of ids too, which its signature lacks.
        ids = [self._prompt(str(prompt), split, rendered, max_length) for prompt in texts]
        batch = ids[0] if isinstance(text, str) else cast(list[int], ids)
        return super()._encode_plus(batch, None, False, **kwargs)

    def _prompt(self, text: str, split: bool, rendered: bool, max_length: int | None) -> list[int]:
        """Return the encoder ids of a text, or of a conversation that the chat template has rendered."""
        if rendered:
            if not (text.startswith(PROMPT_START) and text.endswith(PROMPT_END)):
                raise ValueError(f"a chat template starts with {PROMPT_START} and ends with {PROMPT_END}")
            text = text[len(PROMPT_START) : -len(PROMPT_END)]
            split = True
        ids = cast(list[int], self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens=split)))
        if max_length is not None:
            text_length = max(0, max_length - _PROMPT_TOKENS)
            # The end of a conversation stays, as the question is there; `truncation_side` is for other texts.
            is_cut_on_the_left = rendered or self.truncation_side == "left"
            ids = ids[max(0, len(ids) - text_length) :] if is_cut_on_the_left else ids[:text_length]
        return self.pieces.prompt(ids)

    def apply_chat_template(  # type: ignore[override]  # the other arguments are passed on unchanged
        self, conversation: Sequence[Message] | Sequence[Sequence[Message]], **kwargs: Any
    ) -> str | list[int] | list[str] | list[list[int]] | BatchEncoding:
        """Return the encoder's input for a conversation, which ends where the assistant's answer follows.

        Differs from transformers in two ways: contents are always plain text, and truncation drops the oldest
        turns, whoever speaks, then a system message, then the beginning of what remains. A content may be a
        list of text parts, which are joined.

        Raises:
            ValueError: a content has a part that is no text; `tools` or `documents` with the shipped
                template, which does not use them; truncation without a length.
        """
        template = kwargs.get("chat_template")
        for name in ("tools", "documents"):
            if kwargs.get(name) and name not in (template or self.chat_template):
                raise ValueError(
                    f"{name}: the chat template has no place for them; describe them in the system message"
                )
        kwargs["sanitize_control_tokens"] = False  # contents are never read as control tokens anyway
        kwargs["tokenizer_kwargs"] = {**(kwargs.get("tokenizer_kwargs") or {}), "rendered": True}
        is_batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        batch = cast(Sequence[Sequence[Message]], conversation if is_batched else [conversation])
        conversations = [_with_joined_parts(turns) for turns in batch]
        if kwargs.get("truncation") and kwargs.get("tokenize", True):
            kwargs["max_length"] = self._stated_length(kwargs.get("max_length"))
            conversations = [
                self._drop_oldest(turns, kwargs["max_length"], template) for turns in conversations
            ]
        joined = conversations if is_batched else conversations[0]
        return super().apply_chat_template(cast(list[dict[str, str]], joined), **kwargs)

    def _stated_length(self, max_length: int | None) -> int:
        """Return the length to truncate to: the given one, or the model's.

        Raises:
            ValueError: there is neither.
        """
        if max_length is not None:
            return max_length
        if self.model_max_length > LARGE_INTEGER:
            raise ValueError("truncation: no length is stated; give max_length or set model_max_length")
        return self.model_max_length

    def _drop_oldest(
        self, messages: Sequence[Message], max_length: int, template: str | None
    ) -> list[Message]:
        """Drop as few of the oldest turns as necessary to fit `max_length`; the last turn always stays."""
        turns: list[int] = []
        for position, message in enumerate(messages):
            if message["role"] in ("user", "human") or (message["role"] != "system" and not turns):
                turns.append(position)

        def without(count: int) -> list[Message]:
            if count == 0:
                return list(messages)
            if count == len(turns):
                return list(messages[turns[-1] :])
            return [*messages[: turns[0]], *messages[turns[count] :]]

        def fits(count: int) -> bool:
            ids = self.apply_chat_template(without(count), chat_template=template, return_dict=False)
            return len(cast(list[int], ids)) <= max_length

        return without(bisect.bisect_left(range(len(turns)), True, key=fits))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the SentencePiece file into a folder."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{MODEL_FILE}"
        # Saving into the folder that the tokenizer was loaded from copies nothing.
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _pattern(token: AddedToken) -> str:
    """Return a regular expression of an added token, its text as the one group, obeying its options."""
    before = r"\s*" if token.lstrip else ""
    after = r"\s*" if token.rstrip else ""
    edges = (r"(?<!\w)", r"(?!\w)") if token.single_word else ("", "")
    return f"{before}{edges[0]}({re.escape(token.content)}){edges[1]}{after}"


def _with_joined_parts(messages: Sequence[Message]) -> list[Message]:
    """Return messages with strings as contents: the text parts of a content are joined.

    Raises:
        ValueError: a part is no text; names the message.
    """
    joined: list[Message] = []
    for number, message in enumerate(messages):
        content = message.get("content")  # a template may take turns without one
        if not isinstance(content, list):
            joined.append(message)
            continue
        texts = [part["text"] for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(texts) < len(content):
            raise ValueError(f"message {number}: a part of its content is no text; give text parts only")
        joined.append({**message, "content": "".join(texts)})
    return joined
