"""OpenAI's request form: supported fields, their validation, and the error form.

Owns validation. A field that would change the answer and is not supported is refused by name, never ignored;
a value without effect (`tools: []`, `n: 1`, null) is accepted. Prompts become ids as in training: a
conversation through `openba.data.conversations.history`, wrapped by `openba.data.instruct`. Response bodies
are built in `openai_responses.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from openba.data.conversations import history
from openba.data.instruct import encode_fitting
from openba.serve.engine import Generation
from openba.serve.sampling import Sampling
from openba.tokenizer.tokenizer import Tokenizer

JSONObject = dict[str, object]
DEFAULT_MAX_TOKENS = 256
"""Length limit of an answer where the request gives none, if the decoder has as many positions."""
MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 256
"""Characters of a stop string; every decoder step searches for each of them."""
MAX_LOGIT_BIASES = 1024
MAX_QUOTED_CHARACTERS = 120
"""Characters of a client's text that an error message repeats."""
# Fields that never change an answer.
_IGNORED_FIELDS = (
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
# Fields of unsupported functions, with the values that do not use the function. OpenAI's client sends some of
# these by default.
_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
}
_UNION_TAGS = frozenset(("str", "list[str]", "list[ContentPart]"))
"""Union members that pydantic puts into an error's location; the client's JSON has no such keys."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_SEED_FIELD = Field(None, ge=-(2**63), lt=2**63)


class RequestError(Exception):
    """A request that gets an error body instead of an answer."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        """Args: the HTTP status, the text, OpenAI's error code, and the field at fault."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> JSONObject:
        """Return OpenAI's error object."""
        error_type = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": error_type, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """Options of a stream; obfuscation pads its parts and is not supported."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(BaseModel):
    """Fields of both kinds of request; a `Literal` lists the only values supported."""

    model_config = _STRICT
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = _SEED_FIELD
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=128)
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=MAX_LOGIT_BIASES)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stop_strings = [stop] if isinstance(stop, str) else stop or []
        if len(stop_strings) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} strings")
        if "" in stop_strings:
            raise ValueError("an empty string would end every answer")
        if any(len(stop_string) > MAX_STOP_CHARACTERS for stop_string in stop_strings):
            raise ValueError(f"at most {MAX_STOP_CHARACTERS} characters each")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _check_logit_bias(cls, logit_bias: dict[str, float] | None) -> dict[str, float] | None:
        for token_id, bias_value in (logit_bias or {}).items():
            # Ten digits and more exceed every vocabulary; int() refuses texts of over 4,300 digits.
            if not (token_id.isascii() and token_id.isdecimal() and len(token_id) < 10):
                raise ValueError("keys are token ids, as strings")
            if not -100 <= bias_value <= 100:
                raise ValueError("values are between -100 and 100")
        return logit_bias

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def choices_per_prompt(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1


class ContentPart(BaseModel):
    """Part of a message's content; only text is supported."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation; accepts the dump of a message from OpenAI's client, too."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, message: object) -> object:
        """Drop `refusal: null`, `tool_calls: []` and the like; an assistant's null content becomes empty."""
        if not isinstance(message, dict):
            return message
        fields = {key: value for key, value in message.items() if key == "content" or value not in (None, [])}
        if fields.get("role") == "assistant" and fields.get("content", "") is None:
            fields["content"] = ""
        return fields

    def role_and_text(self) -> dict[str, str]:
        """Return role and text in the form that `history` takes."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """Body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def requested_tokens(self) -> int | None:
        """Length limit of the answer; None: not given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def recorded_logprobs(self) -> int | None:
        """Number of alternatives to record per token; None: no log-probabilities."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def prompt_count(self) -> int:
        """Number of prompts in the request."""
        return 1

    def encode(self, tokenizer: Tokenizer, max_length: int) -> list[list[int]]:
        """Return up to `max_length` encoder ids; drops the oldest turns of a longer conversation."""
        if self.messages[-1].role != "user":
            raise RequestError(400, "messages: the last one must be the user's", param="messages")
        text, turns = history([message.role_and_text() for message in self.messages])
        return [_encode_prompt(tokenizer, text, turns, max_length, "messages")]


class CompletionRequest(GenerationRequest):
    """Body of `/v1/completions`."""

    prompt: str | list[str] = Field(min_length=1)
    echo: Literal[False] | None = None
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of not in (None, self.choices_per_prompt):
            raise ValueError("best_of other than n is not supported")
        return self

    @property
    def requested_tokens(self) -> int | None:
        """Length limit of each answer; None: not given."""
        return self.max_tokens

    @property
    def recorded_logprobs(self) -> int | None:
        """Number of alternatives to record per token; None: no log-probabilities."""
        return self.logprobs

    @property
    def prompt_count(self) -> int:
        """Number of prompts in the request."""
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    def encode(self, tokenizer: Tokenizer, max_length: int) -> list[list[int]]:
        """Return encoder ids of each prompt, of up to `max_length` tokens."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [_encode_prompt(tokenizer, prompt, [], max_length, "prompt") for prompt in prompts]


OpenAIRequest = ChatRequest | CompletionRequest


def _encode_prompt(
    tokenizer: Tokenizer, text: str, turns: Sequence[int], max_length: int, field_name: str
) -> list[int]:
    source_ids, _, is_cut = encode_fitting(tokenizer, text, turns, max_length)
    if is_cut:
        message = (
            f"{field_name}: more than the {max_length - 3} tokens that the model reads; shorten the text"
        )
        raise RequestError(400, message, "context_length_exceeded", field_name)
    return source_ids


def parse_request(request_type: type[ChatRequest] | type[CompletionRequest], body: bytes) -> OpenAIRequest:
    """Return a validated request.

    Raises:
        RequestError: no JSON, or the first invalid field, by its name.
    """
    try:
        # Unlike `json`, orjson follows the standard: no NaN, no Infinity, no lone surrogate.
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError(400, "the body is not a JSON object")
    try:
        return request_type.model_validate(_without_neutral_fields(request_type, fields))
    except ValidationError as error:
        raise _field_error(error) from None


def _without_neutral_fields(
    request_type: type[ChatRequest] | type[CompletionRequest], fields: JSONObject
) -> JSONObject:
    """Drop fields without effect on the answer; OpenAI's client sends null for a field that is not set."""
    return {
        key: value
        for key, value in fields.items()
        if key not in _IGNORED_FIELDS
        and not (key not in request_type.model_fields and value is None)
        and not (key in _NEUTRAL_VALUES and value in _NEUTRAL_VALUES[key])
    }


def _field_error(error: ValidationError) -> RequestError:
    """Return pydantic's first error as one line that opens with the field's name."""
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field_path = ".".join(str(part) for part in details["loc"] if part not in _UNION_TAGS)
    field_path = field_path[:MAX_QUOTED_CHARACTERS]
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        message = "not supported by this server"
        if field_path == "response_format":
            message += '; only {"type": "text"} is'
    return RequestError(400, f"{field_path}: {message}" if field_path else message, param=field_path or None)


def make_generations(
    request: OpenAIRequest,
    sources: Sequence[list[int]],
    *,
    longest_answer: int,
    vocabulary_size: int,
    max_answers: int,
) -> list[Generation]:
    """Return the generations to submit, `n` per source; greedy without a temperature.

    Args:
        request: the request.
        sources: encoder ids of its prompts.
        longest_answer: decoder positions that are left for an answer.
        vocabulary_size: number of token ids.
        max_answers: answers that one request may ask for.

    Raises:
        RequestError: too many tokens or answers, or a bias for no token.
    """
    max_new_tokens = request.requested_tokens
    if max_new_tokens is None:
        max_new_tokens = min(DEFAULT_MAX_TOKENS, longest_answer)
    if max_new_tokens > longest_answer:
        message = f"max_tokens: {max_new_tokens} is more than the model's {longest_answer}"
        raise RequestError(400, message, "context_length_exceeded", "max_tokens")
    if len(sources) * request.choices_per_prompt > max_answers:
        raise RequestError(400, f"n: at most {max_answers} answers in one request", param="n")
    logit_bias = {int(token_id): bias_value for token_id, bias_value in (request.logit_bias or {}).items()}
    for token_id in logit_bias:
        if token_id >= vocabulary_size:
            message = f"logit_bias: {token_id} is no token id below {vocabulary_size}"
            raise RequestError(400, message, param="logit_bias")
    # Stop strings are searched in the text after every step, so that the row is freed at once.
    notify_each_step = bool(request.stream or request.stop_strings)
    return [
        Generation(
            source_ids,
            max_new_tokens,
            sampling=_choice_sampling(request, logit_bias, choice_index),
            notify_each_step=notify_each_step,
        )
        for source_ids in sources
        for choice_index in range(request.choices_per_prompt)
    ]


def _choice_sampling(request: OpenAIRequest, logit_bias: dict[int, float], choice_index: int) -> Sampling:
    """Return the sampling of one choice; with a seed, the choices of a prompt get different seeds."""
    choice_seed = request.seed
    if choice_seed is not None:
        # Wraps around within the signed 64 bits that torch takes.
        choice_seed = (choice_seed + choice_index + 2**63) % 2**64 - 2**63
    return Sampling(
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=choice_seed,
        logit_bias=logit_bias,
        top_logprobs=request.recorded_logprobs,
    )
