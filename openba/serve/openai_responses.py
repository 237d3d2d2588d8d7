"""OpenAI's response form: bodies, stream chunks, usage and log-probabilities; text as it grows.

Owns the conversion of tokens to text. Requests and errors are in `openai_requests.py`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TypedDict

from openba.serve.engine import Generation
from openba.serve.openai_requests import ChatRequest, JSONObject, OpenAIRequest
from openba.tokenizer.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Replaces minus infinity, which JSON cannot represent."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class LogprobEntry(TypedDict):
    """OpenAI's object for the log-probability of one token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenEntry(LogprobEntry):
    """The entry of a generated token, with its most likely alternatives."""

    top_logprobs: list[LogprobEntry]


class ResponseBuilder:
    """Builder of the response bodies of one request."""

    def __init__(self, request: OpenAIRequest, name: str, version: str, response_id: str) -> None:
        """Args: the request, the model's name and version, and a unique id without prefix."""
        self.is_chat = isinstance(request, ChatRequest)
        self.object_name = "chat.completion" if self.is_chat else "text_completion"
        self.choices_per_prompt = request.choices_per_prompt
        self.common_fields: JSONObject = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{response_id}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": version,
        }

    def complete(self, texts: Sequence[GeneratedText]) -> JSONObject:
        """Return the body of a response that is not streamed."""
        choices = []
        for index, text in enumerate(texts):
            content = text.current()
            text_fields: JSONObject = {"text": content}
            if self.is_chat:
                text_fields = {"message": {"role": "assistant", "content": content, "refusal": None}}
            logprobs = self._logprobs(text, 0, text.tokens_before(len(content)))
            choices.append(
                {"index": index, **text_fields, "logprobs": logprobs, "finish_reason": text.finish_reason}
            )
        return self.common_fields | {
            "object": self.object_name,
            "choices": choices,
            "usage": self.usage(texts),
        }

    def role_chunk(self, index: int) -> JSONObject:
        """Return the first chunk of a chat's stream."""
        return self._chunk(
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        )

    def text_chunk(
        self, index: int, text: GeneratedText, new_text: str, finish_reason: str | None = None
    ) -> JSONObject:
        """Return a chunk with new text, or the end and its reason; includes tokens not yet reported."""
        text_fields: JSONObject = {"text": new_text}
        if self.is_chat:
            text_fields = {"delta": {"content": new_text} if new_text else {}}
        first_token = text.reported_tokens
        text.reported_tokens = max(first_token, text.tokens_before(text.sent_characters))
        logprobs = self._logprobs(text, first_token, text.reported_tokens)
        return self._chunk(
            {"index": index, **text_fields, "logprobs": logprobs, "finish_reason": finish_reason}
        )

    def usage_chunk(self, texts: Sequence[GeneratedText]) -> JSONObject:
        """Return the last chunk of a stream with `include_usage`."""
        return self._chunk(None) | {"usage": self.usage(texts)}

    def usage(self, texts: Sequence[GeneratedText]) -> dict[str, int]:
        """Return token counts; the prompt of several choices counts once."""
        # Texts are ordered by prompt, then by choice: every n-th one is the first of a prompt.
        prompt_tokens = sum(len(text.generation.source_ids) for text in texts[:: self.choices_per_prompt])
        completion_tokens = sum(len(text.generation.output_ids) for text in texts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def _chunk(self, choice: JSONObject | None) -> JSONObject:
        object_name = "chat.completion.chunk" if self.is_chat else self.object_name
        return self.common_fields | {"object": object_name, "choices": [] if choice is None else [choice]}

    def _logprobs(self, text: GeneratedText, first_token: int, end_token: int) -> JSONObject | None:
        """Return OpenAI's object for a range of tokens; None if the request did not ask for it."""
        if text.generation.sampling.top_logprobs is None:
            return None
        entries = [text.token_entry(position) for position in range(first_token, end_token)]
        if self.is_chat:
            return {"content": entries, "refusal": None}
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            # Different ids can print alike (an incomplete UTF-8 byte is U+FFFD): reversed, so that the
            # likeliest of them wins.
            "top_logprobs": [
                {
                    alternative["token"]: alternative["logprob"]
                    for alternative in reversed(entry["top_logprobs"])
                }
                for entry in entries
            ],
            "text_offset": [text.offset(position) for position in range(first_token, end_token)],
        }


class GeneratedText:
    """Text of one generation, while it is running."""

    def __init__(self, tokenizer: Tokenizer, generation: Generation, stop_strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.generation = generation
        self.stop_strings = stop_strings
        self.sent_characters = 0
        self.reported_tokens = 0
        """Tokens whose log-probabilities have been sent."""
        self.is_stopped = False
        """Whether a stop string was found."""

    @property
    def finish_reason(self) -> str | None:
        """Reason of the end, or None; after a stop string the engine would say `cancelled`."""
        return "stop" if self.is_stopped else self.generation.finish_reason

    def current(self) -> str:
        """Return the text so far, up to the first stop string; constant once stopped."""
        text = self.tokenizer.decode(self.generation.output_ids)
        positions = [text.find(stop_string) for stop_string in self.stop_strings]
        positions = [position for position in positions if position >= 0]
        if positions:
            self.is_stopped = True
            return text[: min(positions)]
        return text

    def take_new(self, is_last: bool) -> str:
        """Return the text that is new and final, and count it as sent.

        Withholds an incomplete character and the beginning of a stop string unless `is_last`.
        """
        text = self.current()
        if not (is_last or self.is_stopped):
            # A character of several byte tokens decodes to U+FFFD until its last byte is there.
            if text.endswith("\ufffd"):
                return ""
            text = text[: len(text) - self._withheld_characters(text)]
        new_text = text[self.sent_characters :]
        self.sent_characters = max(self.sent_characters, len(text))
        return new_text

    def _withheld_characters(self, text: str) -> int:
        """Return the length of the longest beginning of a stop string that the text ends with."""
        prefix_lengths = (
            length
            for stop_string in self.stop_strings
            for length in range(1, len(stop_string))
            if text.endswith(stop_string[:length])
        )
        return max(prefix_lengths, default=0)

    def tokens_before(self, character: int) -> int:
        """Return how many recorded tokens begin before a character of the text."""
        if self.generation.sampling.top_logprobs is None:
            return 0
        recorded_tokens = len(self.generation.logprobs)
        if self.finish_reason is not None and not self.is_stopped:
            return recorded_tokens
        for position in range(self.reported_tokens, recorded_tokens):
            if self.offset(position) >= character:
                return position
        return recorded_tokens

    def offset(self, position: int) -> int:
        """Return the character at which a token begins."""
        return len(self.tokenizer.decode(self.generation.output_ids[:position]))

    def token_entry(self, position: int) -> TokenEntry:
        """Return OpenAI's object for the token at a position."""
        recorded = self.generation.logprobs[position]
        top_logprobs = [self._logprob_entry(token, logprob) for token, logprob in recorded.top_tokens]
        chosen_entry = self._logprob_entry(self.generation.output_ids[position], recorded.chosen_logprob)
        return {**chosen_entry, "top_logprobs": top_logprobs}

    def _logprob_entry(self, token: int, logprob: float) -> LogprobEntry:
        utf8_bytes = token_bytes(self.tokenizer, token)
        if utf8_bytes is None:
            token_text = self.tokenizer.show([token])
        else:
            token_text = utf8_bytes.decode(errors="replace")
        return {
            "token": token_text,
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": None if utf8_bytes is None else list(utf8_bytes),
        }


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes | None:
    """Return the UTF-8 bytes of a token; None for a control token, which is no text."""
    if not tokenizer.pieces.is_text(token):
        return None
    piece = tokenizer.pieces.piece(token)
    if byte_match := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte_match[1], 16)])
    return piece.replace("\u2581", " ").encode()
