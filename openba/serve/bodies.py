"""OpenAI's form of an answer: bodies, parts of a stream, usage and log-probabilities; texts as they grow.

Owns text of tokens. Requests and errors are `protocol.py`'s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from openba.serve.engine import Job
from openba.serve.protocol import ChatRequest, Request
from openba.tokenizer.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Body:
    """Bodies of one request's answer."""

    def __init__(self, request: Request, name: str, version: str, identifier: str) -> None:
        self.chat = isinstance(request, ChatRequest)
        self.kind = "chat.completion" if self.chat else "text_completion"
        self.choices = request.choices
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{identifier}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": version,
        }

    def complete(self, texts: Sequence[Text]) -> dict[str, Any]:
        """Return the answer in one piece."""
        choices = []
        for index, text in enumerate(texts):
            content = text.current()
            message = {"message": {"role": "assistant", "content": content, "refusal": None}}
            said: dict[str, Any] = message if self.chat else {"text": content}
            logprobs = self._logprobs(text, 0, text.tokens_before(len(content)))
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": text.reason})
        return self.head | {"object": self.kind, "choices": choices, "usage": self.usage(texts)}

    def begin(self, index: int) -> dict[str, Any]:
        """Return the first part of a chat's stream."""
        return self._part(
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        )

    def piece(self, index: int, text: Text, piece: str, reason: str | None = None) -> dict[str, Any]:
        """Return a part of a stream: new text, or the end and its reason; tokens not yet reported."""
        said: dict[str, Any] = (
            {"delta": {"content": piece} if piece else {}} if self.chat else {"text": piece}
        )
        begin = text.reported
        text.reported = max(begin, text.tokens_before(text.told))
        logprobs = self._logprobs(text, begin, text.reported)
        return self._part({"index": index, **said, "logprobs": logprobs, "finish_reason": reason})

    def used(self, texts: Sequence[Text]) -> dict[str, Any]:
        """Return the last part of a stream that asked for its usage."""
        return self._part(None) | {"usage": self.usage(texts)}

    def usage(self, texts: Sequence[Text]) -> dict[str, int]:
        """Return tokens read and written; a prompt with several answers is read once."""
        read = sum(len(text.job.source) for text in texts[:: self.choices])
        written = sum(len(text.job.written) for text in texts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _part(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else self.kind
        return self.head | {"object": kind, "choices": [] if choice is None else [choice]}

    def _logprobs(self, text: Text, begin: int, end: int) -> dict[str, Any] | None:
        """Return OpenAI's object for tokens `begin` to `end`; None if the request did not ask."""
        if text.job.sampling.top_logprobs is None:
            return None
        entries = [text.entry(position) for position in range(begin, end)]
        if self.chat:
            return {"content": entries, "refusal": None}
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {each["token"]: each["logprob"] for each in reversed(entry["top_logprobs"])}
                for entry in entries
            ],
            "text_offset": [text.offset(position) for position in range(begin, end)],
        }


class Text:
    """An answer's text while it is being written."""

    def __init__(self, tokenizer: Tokenizer, job: Job, stops: Sequence[str]) -> None:
        self.tokenizer, self.job, self.stops = tokenizer, job, stops
        self.told = 0
        """Characters sent so far."""
        self.reported = 0
        """Tokens whose log-probabilities were sent so far."""
        self.stopped = False

    @property
    def reason(self) -> str | None:
        """Why it ended, or None: a stop string counts before what the engine says of a cancelled row."""
        return "stop" if self.stopped else self.job.reason

    def current(self) -> str:
        """Return all that is written, up to the first stop string; a text that has stopped stays as it is."""
        text = self.tokenizer.decode(self.job.written)
        ends = [end for stop in self.stops if (end := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]
        return text

    def more(self, last: bool) -> str:
        """Return what is new and will not change: no half character, no beginning of a stop string."""
        text = self.current()
        if not (last or self.stopped):
            if text.endswith("\ufffd"):  # a character of several byte pieces
                return ""
            held = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
            text = text[: len(text) - max(held, default=0)]
        piece, self.told = text[self.told :], max(self.told, len(text))
        return piece

    def tokens_before(self, characters: int) -> int:
        """Return how many recorded tokens begin before a position of the text."""
        if self.job.sampling.top_logprobs is None:
            return 0
        recorded = len(self.job.logprobs)
        if self.reason is not None and not self.stopped:
            return recorded
        return next((i for i in range(self.reported, recorded) if self.offset(i) >= characters), recorded)

    def offset(self, position: int) -> int:
        """Return the place in the text where a token begins."""
        return len(self.tokenizer.decode(self.job.written[:position]))

    def entry(self, position: int) -> dict[str, Any]:
        """Return OpenAI's object of a token's log-probabilities."""
        recorded = self.job.logprobs[position]
        top = [self._token(token, logprob) for token, logprob in recorded.top]
        return self._token(self.job.written[position], recorded.chosen) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        written = token_bytes(self.tokenizer, token)
        name = self.tokenizer.show([token]) if written is None else written.decode(errors="replace")
        kept = None if written is None else list(written)
        return {"token": name, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": kept}


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes | None:
    """Return the UTF-8 bytes that a token stands for; None for a control token, which is no text."""
    if not tokenizer.pieces.is_text(token):
        return None
    piece = tokenizer.pieces.piece(token)
    if byte := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace("\u2581", " ").encode()
