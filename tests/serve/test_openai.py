"""OpenAI's own Python client against a real server: what it sends is taken, what it gets it can read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from openba.data.conversations import history
from openba.data.instruct import encode_input
from openba.model.generate import continuation_losses, generate, start_tokens
from openba.model.model import OpenBAModel
from openba.serve.openai_responses import token_bytes
from openba.tokenizer.tokenizer import Tokenizer
from tests.serve.conftest import KEY, Server

Loaded = tuple[OpenBAModel, Tokenizer]
ASK: list[Any] = [{"role": "user", "content": "房间很干净，服务也好。"}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def expected(loaded: Loaded, messages: list[dict[str, str]], limit: int) -> str:
    model, tokenizer = loaded
    return generate(model, tokenizer, [encode_input(tokenizer, *history(messages), 128)], limit)[0]


def test_chat_and_its_own_messages_as_history(client: openai.OpenAI, loaded: Loaded) -> None:
    first = client.chat.completions.create(model="small", messages=ASK, max_tokens=12)
    message = first.choices[0].message
    assert message.content == expected(loaded, ASK, 12)
    question = {"role": "user", "content": "And now?"}
    second = client.chat.completions.create(
        model="small", messages=[*ASK, message.model_dump(), question], max_completion_tokens=12
    )
    answer = {"role": "assistant", "content": str(message.content)}
    assert second.choices[0].message.content == expected(loaded, [*ASK, answer, question], 12)
    # The object itself works as its dump does.
    third = client.chat.completions.create(model="small", messages=[*ASK, message, question], max_tokens=12)
    assert third.choices[0].message.content == second.choices[0].message.content


def test_streams_with_usage(client: openai.OpenAI, loaded: Loaded) -> None:
    with client.chat.completions.create(
        model="small", messages=ASK, max_tokens=12, stream=True, stream_options={"include_usage": True}
    ) as stream:
        parts = list(stream)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == expected(loaded, ASK, 12)
    usage = parts[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > 5
    assert 0 < usage.completion_tokens <= 12
    assert parts[-2].choices[0].finish_reason in ("stop", "length")
    completed = client.completions.create(model="small", prompt="房间", max_tokens=12, stream=True)
    pieces = "".join(part.choices[0].text for part in completed)
    assert pieces == client.completions.create(model="small", prompt="房间", max_tokens=12).choices[0].text


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert client.models.retrieve("small") == listed
    assert listed.created > 1_700_000_000
    with pytest.raises(openai.NotFoundError, match="'small' is") as error:
        client.models.retrieve("gpt-4")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_n_stop_seed_and_logit_bias(client: openai.OpenAI, loaded: Loaded) -> None:
    def sampled(**options: Any) -> list[str]:
        done = client.chat.completions.create(
            model="small", messages=ASK, max_tokens=12, temperature=1.5, **options
        )
        assert [choice.index for choice in done.choices] == list(range(len(done.choices)))
        usage = done.usage
        assert usage is not None
        assert usage.prompt_tokens < 60  # the prompt counts once
        return [str(choice.message.content) for choice in done.choices]

    four = sampled(n=4, seed=7)
    assert len(set(four)) > 1
    assert sampled(n=4, seed=7) == four
    assert sampled(seed=7) == four[:1]
    assert sampled(n=4, seed=-8) != four
    greedy = expected(loaded, ASK, 12)
    stopped = client.chat.completions.create(model="small", messages=ASK, max_tokens=12, stop=[greedy[3:5]])
    assert stopped.choices[0].message.content == greedy[: greedy.index(greedy[3:5])]
    assert stopped.choices[0].finish_reason == "stop"
    token = loaded[1].encode("房间")[-1]
    biased = client.chat.completions.create(
        model="small", messages=ASK, max_tokens=5, logit_bias={str(token): 100}
    )
    assert str(biased.choices[0].message.content) == loaded[1].decode([token] * 5)
    streamed = list(
        client.chat.completions.create(
            model="small", messages=ASK, max_tokens=12, temperature=1.5, n=4, seed=7, stream=True
        )
    )
    texts = [""] * 4
    for part in streamed:
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == four


def test_logprobs_are_the_models(client: openai.OpenAI, loaded: Loaded) -> None:
    model, tokenizer = loaded
    done = client.chat.completions.create(
        model="small", messages=ASK, max_tokens=12, logprobs=True, top_logprobs=3
    )
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content
    assert content is not None
    text = str(done.choices[0].message.content)
    # A random model also writes bytes that are no characters.
    written = b"".join(bytes(entry.bytes or []) for entry in content).decode(errors="replace")
    assert written.replace("\ufffd", "").strip() == text.replace("\ufffd", "").strip()
    source = encode_input(tokenizer, *history(ASK), 128)
    ids = tokenizer.encode(text)
    if tokenizer.decode(ids) == text and len(ids) == len(content):
        (losses,) = continuation_losses(model, [source], [ids], start_tokens(tokenizer))
        assert [entry.logprob for entry in content] == pytest.approx([-loss for loss in losses], abs=1e-3)
    for entry in content:  # greedy: the likeliest is the one that was taken
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert len(entry.top_logprobs) == 3
        assert sum(math.exp(each.logprob) for each in entry.top_logprobs) <= 1.0001
    streamed: list[Any] = []
    for part in client.chat.completions.create(
        model="small", messages=ASK, max_tokens=12, logprobs=True, top_logprobs=3, stream=True
    ):
        streamed += (part.choices[0].logprobs and part.choices[0].logprobs.content) or []
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    completion = client.completions.create(model="small", prompt="房间", max_tokens=12, logprobs=2)
    found = completion.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.text_offset is not None
    assert len(found.tokens) == len(found.token_logprobs or []) == len(found.top_logprobs or [])
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        if "\ufffd" not in token:
            assert completion.choices[0].text[offset:].lstrip().startswith(token.strip())


def test_bytes_of_tokens_are_the_text(loaded: Loaded) -> None:
    tokenizer = loaded[1]
    text = "房间 很 good 🙂 def f():"
    written = b"".join(token_bytes(tokenizer, token) or b"" for token in tokenizer.encode(text))
    assert written.decode().strip() == text
    assert token_bytes(tokenizer, tokenizer.eos) is None
    assert token_bytes(tokenizer, tokenizer.sentinel(3)) is None


NEUTRAL: list[dict[str, Any]] = [
    {"tools": []},
    {"tools": None},
    {"tool_choice": "none"},
    {"parallel_tool_calls": True},
    {"logit_bias": {}},
    {"response_format": {"type": "text"}},
    {"n": 1},
    {"user": "someone", "metadata": {"a": "b"}, "store": False},
    {"modalities": ["text"], "audio": None, "prediction": None, "reasoning_effort": None},
    {"functions": [], "function_call": "none"},
    {"frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "top_p": 1},
]


@pytest.mark.parametrize("options", NEUTRAL, ids=lambda options: ",".join(options))
def test_what_changes_nothing_is_taken(
    client: openai.OpenAI, loaded: Loaded, options: dict[str, Any]
) -> None:
    done = client.chat.completions.create(model="small", messages=ASK, max_tokens=8, extra_body=options)
    assert done.choices[0].message.content == expected(loaded, ASK, 8)


def test_an_assistants_null_content_is_no_text(client: openai.OpenAI, loaded: Loaded) -> None:
    def ask(content: str | None) -> str:
        messages: list[Any] = [*ASK, {"role": "assistant", "content": content, "tool_calls": []}, *ASK]
        done = client.chat.completions.create(model="small", messages=messages, max_tokens=8)
        return str(done.choices[0].message.content)

    assert ask(None) == ask("")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"tools": [TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [TOOL["function"]]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"n": 65}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"top_logprobs": 2}, None),
        ({"seed": 2**63}, "seed"),
        ({"temperature": True}, "temperature"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "", "tool_calls": [TOOL]}]}, "messages.0.tool_calls"),
        ({"something_new": 1}, "something_new"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else str(value),
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    client: openai.OpenAI, options: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="small", messages=ASK, extra_body=options)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"
    name = param or "top_logprobs"
    assert name in str(error.value)


def test_a_wrong_key_is_an_authentication_error(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="small", messages=ASK)
        with pytest.raises(openai.AuthenticationError):
            client.models.retrieve("small")
