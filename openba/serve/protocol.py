"""OpenAI's form of a request: what it may say, and what an error is.

Owns validation. A field that would change the answer and is not supported is refused by name, never ignored;
a value that changes nothing (`tools: []`, `n: 1`, null) is accepted. Prompts become ids as in training: a
conversation through `openba.data.tasks.history`, everything wrapped by `openba.data.instruct`. Bodies of
answers are `bodies.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from openba.data.conversations import history
from openba.data.instruct import encode_fitting
from openba.serve.engine import Job
from openba.serve.sampling import Sampling
from openba.tokenizer.tokenizer import Tokenizer

DEFAULT_TOKENS = 256
"""Of an answer, where the request gives no limit and the model has the positions."""
MOST_STOPS, LONGEST_STOP = 4, 256
"""Stop strings of a request; characters of each, as every step looks for them."""
MOST_BIASES = 1024
MOST_NAMED = 120
"""Characters of a client's text that an error message repeats."""
# Fields that change no answer, whatever they say.
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
# Fields of unsupported functions, with the values that ask for none of it.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
}
_UNION_TAGS = frozenset(("str", "list[str]", "list[Part]"))
"""Names of a union's members in pydantic's places of errors; no client has written them."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Seed = Field(None, ge=-(2**63), lt=2**63)


class Refused(Exception):
    """A request that gets an error body instead of an answer."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """What a stream ends with, and that its parts are not padded."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Asked(BaseModel):
    """What both kinds of request have; a `Literal` names the only values supported."""

    model_config = _STRICT
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = _Seed
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=128)
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=MOST_BIASES)

    @field_validator("stop")
    @classmethod
    def _check_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MOST_STOPS:
            raise ValueError(f"at most {MOST_STOPS} strings")
        if "" in stops:
            raise ValueError("an empty string would end every answer")
        if any(len(each) > LONGEST_STOP for each in stops):
            raise ValueError(f"at most {LONGEST_STOP} characters each")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _check_biases(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (biases or {}).items():
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise ValueError("keys are token ids, as strings")
            if not -100 <= bias <= 100:
                raise ValueError("values are between -100 and 100")
        return biases

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1


class Part(BaseModel):
    """A part of a message; there are only texts."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation, also as OpenAI's client prints those that it got."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, message: Any) -> Any:
        """Drop `refusal: null`, `tool_calls: []` and the like; an assistant's null content is no text."""
        if not isinstance(message, dict):
            return message
        kept = {key: value for key, value in message.items() if key == "content" or value not in (None, [])}
        if kept.get("role") == "assistant" and kept.get("content", "") is None:
            kept["content"] = ""
        return kept

    def plain(self) -> dict[str, str]:
        """Return role and text as `history` takes them."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Asked):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def tokens(self) -> int | None:
        """The limit of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def recorded_logprobs(self) -> int | None:
        """How many alternatives of each token to record; None: no log-probabilities."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def prompts(self) -> int:
        """Prompts in the request."""
        return 1

    def sources(self, tokenizer: Tokenizer, length: int) -> list[list[int]]:
        """Return encoder ids; the oldest turns go first where the conversation is too long."""
        if self.messages[-1].role != "user":
            raise Refused(400, "messages: the last one must be the user's", param="messages")
        text, turns = history([message.plain() for message in self.messages])
        return [_fitting(tokenizer, text, turns, length, "messages")]


class CompletionRequest(Asked):
    """Body of `/v1/completions`."""

    prompt: str | list[str] = Field(min_length=1)
    echo: Literal[False] | None = None
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of not in (None, self.choices):
            raise ValueError("best_of other than n is not supported")
        return self

    @property
    def tokens(self) -> int | None:
        """The limit of each answer."""
        return self.max_tokens

    @property
    def recorded_logprobs(self) -> int | None:
        """How many alternatives of each token to record; None: no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> int:
        """Prompts in the request."""
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    def sources(self, tokenizer: Tokenizer, length: int) -> list[list[int]]:
        """Return encoder ids of each prompt."""
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
    """Return a checked request.

    Raises:
        Refused: no JSON, or the first thing in it that is wrong, by its name.
    """
    try:
        # JSON as its standard says: no NaN, no Infinity, no number beyond a double, no half of a surrogate.
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refused(400, "the body is not a JSON object")
    try:
        return kind.model_validate(_without_neutral_fields(kind, data))
    except ValidationError as error:
        raise _refusal(error) from None


def _without_neutral_fields(
    kind: type[ChatRequest] | type[CompletionRequest], data: dict[str, Any]
) -> dict[str, Any]:
    """Drop what changes no answer; nulls are what OpenAI's client sends for a field that is not set."""
    return {
        key: value
        for key, value in data.items()
        if key not in _IGNORED
        and not (key not in kind.model_fields and value is None)
        and not (key in _WITHOUT_EFFECT and value in _WITHOUT_EFFECT[key])
    }


def _refusal(error: ValidationError) -> Refused:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"] if part not in _UNION_TAGS)[:MOST_NAMED]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "not supported by this server"
        if where == "response_format":
            message += '; only {"type": "text"} is'
    return Refused(400, f"{where}: {message}" if where else message, param=where or None)


def jobs_of(
    request: Request, sources: Sequence[list[int]], longest: int, vocabulary: int, most: int
) -> list[Job]:
    """Return what the engine is asked to write, `n` jobs for each source; greedy without a temperature.

    Args:
        request: the request.
        sources: encoder ids of its prompts.
        longest: new tokens that the decoder has positions for.
        vocabulary: number of token ids.
        most: answers that one request may ask for.

    Raises:
        Refused: more tokens or answers than there may be, or a bias for no token.
    """
    limit = min(DEFAULT_TOKENS, longest) if request.tokens is None else request.tokens
    if limit > longest:
        message = f"max_tokens: {limit} is more than the model's {longest}"
        raise Refused(400, message, "context_length_exceeded", "max_tokens")
    if len(sources) * request.choices > most:
        raise Refused(400, f"n: at most {most} answers in one request", param="n")
    biases = {int(token): bias for token, bias in (request.logit_bias or {}).items()}
    if outside := [token for token in biases if token >= vocabulary]:
        raise Refused(400, f"logit_bias: {outside[0]} is no token id below {vocabulary}", param="logit_bias")
    watched = bool(request.stream or request.stops)
    return [
        Job(source, limit, _sampling(request, biases, choice), watched)
        for source in sources
        for choice in range(request.choices)
    ]


def _sampling(request: Request, biases: dict[int, float], choice: int) -> Sampling:
    """Return one choice's sampling; with a seed, each choice of a prompt has a seed of its own."""
    seed = None if request.seed is None else (request.seed + choice + 2**63) % 2**64 - 2**63
    return Sampling(
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=seed,
        bias=biases,
        top_logprobs=request.recorded_logprobs,
    )
