"""OpenAI's form: what a request may say, what the answers look like, and what an error is.

Owns validation and JSON bodies. A field that would change the answer and is not supported is refused, never
ignored. Prompts become ids as in training: a conversation through `openba.data.tasks.history`, everything
wrapped by `openba.data.instruct`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from openba.data.instruct import encode_fitting
from openba.data.tasks import history
from openba.data.tokenizer import Tokenizer
from openba.serve.engine import Job

DEFAULT_TOKENS = 256
"""Of an answer, where the request gives no limit and the model has the positions."""
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class Refused(Exception):
    """A request that gets an error body instead of an answer."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request have; the values of the last fields are the only ones supported."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 4:
            raise ValueError("at most 4 strings")
        if stop is not None and "" in ([stop] if isinstance(stop, str) else stop):
            raise ValueError("an empty string would end every answer")
        return stop

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Part(BaseModel):
    """A part of a message; there are only texts."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text as `history` takes them."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Asked):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None

    @property
    def tokens(self) -> int | None:
        """The limit of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def sources(self, tokenizer: Tokenizer, length: int) -> list[list[int]]:
        """Encoder ids; the oldest turns go first where the conversation is too long."""
        if self.messages[-1].role != "user":
            raise Refused(400, "messages: the last one must be the user's", param="messages")
        text, turns = history([message.plain() for message in self.messages])
        return [_fitting(tokenizer, text, turns, length, "messages")]


class CompletionRequest(Asked):
    """Body of `/v1/completions`."""

    prompt: str | list[str] = Field(min_length=1)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def tokens(self) -> int | None:
        """The limit of each answer."""
        return self.max_tokens

    def sources(self, tokenizer: Tokenizer, length: int) -> list[list[int]]:
        """Encoder ids of each prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [_fitting(tokenizer, prompt, [], length, "prompt") for prompt in prompts]


Request = ChatRequest | CompletionRequest


def _fitting(tokenizer: Tokenizer, text: str, turns: Sequence[int], length: int, param: str) -> list[int]:
    ids, _, cut = encode_fitting(tokenizer, text, turns, length)
    if cut:
        message = f"{param}: more than the {length - 3} tokens that the model reads; shorten the text"
        raise Refused(400, message, "context_length_exceeded", param)
    return ids


def parse(kind: type[ChatRequest] | type[CompletionRequest], body: bytes) -> Request:
    """A checked request.

    Raises:
        Refused: no JSON, or the first thing in it that is wrong, by its name.
    """
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        left = [p for p in problems if not (p["type"] == "extra_forbidden" and p["loc"][0] in _IGNORED)]
        if not left:  # only fields that change no answer: read again without them
            return parse(kind, _without(body))
        where = ".".join(map(str, left[0]["loc"]))
        message = f"{where}: {left[0]['msg']}" if where else f"the body is not JSON: {left[0]['msg']}"
        raise Refused(400, message, param=where or None) from None
    return request


def _without(body: bytes) -> bytes:
    return orjson.dumps({key: value for key, value in orjson.loads(body).items() if key not in _IGNORED})


def jobs_of(request: Request, sources: list[list[int]], longest: int) -> list[Job]:
    """What the engine is asked to write; without a temperature the likeliest tokens.

    Raises:
        Refused: more tokens asked than the decoder has positions.
    """
    limit = min(DEFAULT_TOKENS, longest) if request.tokens is None else request.tokens
    if limit > longest:
        raise Refused(
            400,
            f"max_tokens: {limit} is more than the model's {longest}",
            "context_length_exceeded",
            "max_tokens",
        )
    watched = bool(request.stream or request.stops)
    return [
        Job(source, limit, request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p,
            request.seed, watched)
        for source in sources
    ]  # fmt: skip


class Body:
    """Bodies of one request's answer."""

    def __init__(self, request: Request, name: str, version: str, identifier: str) -> None:
        self.chat = isinstance(request, ChatRequest)
        self.kind = "chat.completion" if self.chat else "text_completion"
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{identifier}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": version,
        }

    def whole(self, texts: Sequence[Text]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for index, text in enumerate(texts):
            message = {"message": {"role": "assistant", "content": text.whole()}}
            said: dict[str, Any] = message if self.chat else {"text": text.whole()}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": text.reason})
        used = usage([text.job for text in texts])
        return self.head | {"object": self.kind, "choices": choices, "usage": used}

    def piece(self, index: int, text: str | None, reason: str | None = None) -> dict[str, Any]:
        """A part of a stream: a chat's beginning (None), some text, or the end with its reason."""
        if self.chat:
            begin = {"role": "assistant", "content": ""}
            said: dict[str, Any] = {"delta": begin if text is None else {"content": text} if text else {}}
        else:
            said = {"text": text or ""}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion.chunk" if self.chat else self.kind
        return self.head | {"object": kind, "choices": [choice]}

    def used(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The last part of a stream that asked for its usage."""
        return self.piece(0, "") | {"choices": [], "usage": usage(jobs)}


def usage(jobs: Sequence[Job]) -> dict[str, int]:
    """Tokens read and written."""
    read, written = sum(len(job.source) for job in jobs), sum(len(job.written) for job in jobs)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Text:
    """An answer's text while it is being written."""

    def __init__(self, tokenizer: Tokenizer, job: Job, stops: Sequence[str]) -> None:
        self.tokenizer, self.job, self.stops = tokenizer, job, stops
        self.told = 0
        self.stopped = False

    @property
    def reason(self) -> str | None:
        """Why it ended, or None: a stop string counts before what the engine says of a cancelled row."""
        return "stop" if self.stopped else self.job.reason

    def whole(self) -> str:
        """All that is written, up to the first stop string; a text that has stopped stays as it is."""
        text = self.tokenizer.decode(self.job.written)
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]
        return text

    def more(self, last: bool) -> str:
        """What is new and will not change: no half character, no beginning of a stop string."""
        text = self.whole()
        if not (last or self.stopped):
            if text.endswith("\ufffd"):  # a character of several byte pieces
                return ""
            held = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
            text = text[: len(text) - max(held, default=0)]
        piece, self.told = text[self.told :], max(self.told, len(text))
        return piece
