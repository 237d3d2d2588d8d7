"""A real `openba serve` process: right answers for many clients at once, a 4xx for whatever else."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from openba.data.conversations import history
from openba.data.instruct import encode_input
from openba.model.generate import generate
from openba.model.model import OpenBAModel
from openba.tokenizer.tokenizer import Tokenizer
from tests.serve.conftest import KEY, Server

Loaded = tuple[OpenBAModel, Tokenizer]
TEXTS = (
    "房间很干净，服务也好。",
    "Translate into Chinese: the file was not found",
    "def",
    "书的质量太差了！" * 4,
)
SLOW = {"prompt": "房间 1", "max_tokens": 126, "stop": "no such text"}


def alone(loaded: Loaded, text: str, limit: int) -> str:
    model, tokenizer = loaded
    return generate(model, tokenizer, [encode_input(tokenizer, text, [], 128)], limit)[0]


def events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def idle(server: Server) -> dict[str, Any]:
    """The state once no row is written and nobody waits."""
    for _ in range(200):
        state = server.client.get("/health").json()
        if not state["rows"] + state["waiting"]:
            return state
        time.sleep(0.05)
    raise AssertionError(state)


def test_clients_at_once_get_their_own_answers(server: Server, loaded: Loaded) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(40)]

    def ask(i: int) -> str:
        if i % 2:
            parts = events(
                server.client, "/v1/completions", {"prompt": texts[i], "max_tokens": 30, "stream": True}
            )
            return "".join(part["choices"][0]["text"] for part in parts)
        answer = server.client.post("/v1/completions", json={"prompt": texts[i], "max_tokens": 30}).json()
        return answer["choices"][0]["text"]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(40)))
    assert found == [alone(loaded, text, 30) for text in texts]
    assert len(set(found)) > 25


def test_conversation_is_read_as_in_training(server: Server, loaded: Loaded) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "how are you"}]},
    ]
    plain = [*messages[:3], {"role": "user", "content": "how are you"}]
    model, tokenizer = loaded
    source = encode_input(tokenizer, *history(plain), 128)  # type: ignore[arg-type]
    expected = generate(model, tokenizer, [source], 20)[0]
    body = {"messages": messages, "max_completion_tokens": 20, "model": "small", "user": "someone"}
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["object"] == "chat.completion"
    message = {"role": "assistant", "content": expected, "refusal": None}
    assert answer["choices"][0]["message"] == message
    assert answer["usage"]["prompt_tokens"] == len(source)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    parts = events(server.client, "/v1/chat/completions", body)
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in parts[:-1]) == expected
    assert parts[-2]["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]
    assert (parts[-1]["choices"], parts[-1]["usage"]) == ([], answer["usage"])
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_stop_strings_end_an_answer_and_are_not_in_it(server: Server, loaded: Loaded) -> None:
    prompt = next(t for t in (f"{TEXTS[i % 4]} {i}" for i in range(40)) if len(alone(loaded, t, 30)) > 20)
    whole = alone(loaded, prompt, 30)
    stop = whole[10:13]
    body = {"prompt": prompt, "max_tokens": 30, "stop": [stop, "never there"]}
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    parts = events(server.client, "/v1/completions", body | {"stream": True})
    assert "".join(part["choices"][0]["text"] for part in parts) == choice["text"]


def test_several_prompts_are_several_choices(server: Server, loaded: Loaded) -> None:
    body = {"prompt": list(TEXTS), "max_tokens": 8}
    choices = server.client.post("/v1/completions", json=body).json()["choices"]
    assert [choice["text"] for choice in choices] == [alone(loaded, text, 8) for text in TEXTS]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]


def test_samples_by_seed(server: Server) -> None:
    body = {"prompt": "def", "max_tokens": 20, "temperature": 1.5, "seed": 3}
    texts = [server.client.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    other = server.client.post("/v1/completions", json=body | {"seed": 4}).json()["choices"][0]["text"]
    assert other != texts[0]


CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("completions", b"\x00\xff garbage", 400, "not JSON"),
        ("completions", b"[]", 400, "object"),
        ("completions", b'{"prompt": "x", "user": Infinity}', 400, "not JSON"),
        ("completions", b'{"prompt": "x", "temperature": NaN}', 400, "not JSON"),
        ("completions", b'{"prompt": "x", "temperature": 1e400}', 400, "not JSON"),
        ("completions", rb'{"prompt": "\ud800"}', 400, "not JSON"),
        ("completions", b"[" * 2000, 400, "not JSON"),
        ("completions", {"prompt": "x", "stop": "x" * 10_000}, 400, "stop"),
        ("completions", {"prompt": "x", "y" * 5000: 1}, 400, "not supported"),
        ("completions", {"prompt": "x", "model": "g" * 5000}, 404, "'small' is"),
        ("completions", {}, 400, "prompt: Field required"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        (
            "completions",
            {"prompt": "x", "max_tokens": 127},
            400,
            "max_tokens: 127 is more than the model's 126",
        ),
        ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature"),
        ("completions", {"prompt": "x", "n": 0}, 400, "n: "),
        ("completions", {"prompt": "x", "logit_bias": {"a": 1}}, 400, "logit_bias"),
        ("completions", {"prompt": "x", "stop": ""}, 400, "stop"),
        ("completions", {"prompt": "x", "model": "gpt"}, 404, "'small' is"),
        ("completions", {"prompt": "书" * 500}, 400, "more than the 125 tokens"),
        ("completions", {"prompt": ["x"] * 65}, 400, "at most 64"),
        ("completions", {"prompt": ["x"] * 50}, 429, "too many requests"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, 400, "the last one"),
        ("chat/completions", CHAT | {"tools": [{}]}, 400, "tools"),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    server: Server, path: str, body: bytes | dict[str, Any], status: int, said: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = server.client.post(f"/v1/{path}", content=content, headers=headers)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400
    counted = 'openba_serve_requests_total{path="%s",status="%d"}'
    label = f"/v1/{path}" if path != "nothing" else "other"
    assert counted % (label, status) in server.client.get("/metrics").text


def test_other_methods_types_and_hosts(server: Server) -> None:
    assert server.client.get("/v1/completions").status_code == 405
    plain = {"content-type": "text/plain"}
    assert server.client.post("/v1/completions", content=b'{"prompt": "x"}', headers=plain).status_code == 415
    refused = server.client.get("/health", headers={"host": "evil.example"})
    assert refused.status_code == 400
    assert "another server" in refused.json()["error"]["message"]


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eA=="}])
def test_nobody_asks_without_the_key(server: Server, header: dict[str, str]) -> None:
    for method, path in (
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
    ):
        response = httpx.request(method, server.url + path, headers=header, json={"prompt": "x"})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(server.url + "/health").status_code == 200


def test_large_bodies_are_refused_and_not_kept(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    for _ in range(5):
        response = server.client.post("/v1/completions", content=b"x" * 10_000_000)
        assert response.status_code == 413
        assert "100000 bytes" in response.json()["error"]["message"]
    assert process.memory_info().rss - before < 20e6
    chunks = (b"x" * 65536 for _ in range(30))  # no length told beforehand
    assert server.client.post("/v1/completions", content=chunks).status_code == 413


def raw(server: Server, data: bytes) -> bytes:
    """What the server says to some bytes and no more of them, until it closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer only-for-tests\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", b"400"),
        (b"", b"408"),
        (HEAD, b"408"),
        (HEAD + b"content-type: application/json\r\ncontent-length: 500\r\n\r\n{", b"408"),
    ],
    ids=["garbage", "silent", "half a head", "half a body"],
)
def test_slow_and_broken_clients_do_not_stay(server: Server, data: bytes, status: bytes) -> None:
    assert raw(server, data).startswith(b"HTTP/1.1 " + status)


def test_clients_that_leave_free_their_rows(server: Server) -> None:
    idle(server)
    for stream in (False, True):
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(
            SLOW | {"stream": stream, "prompt": [f"{text} {i}" for text in TEXTS for i in range(9)]}
        )
        head = HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body.encode())
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body.encode())
            if stream:
                connection.recv(100)
    idle(server)
    gone = 'openba_serve_requests_total{path="/v1/completions",status="499"}'
    assert gone in server.client.get("/metrics").text
    assert psutil.Process(server.process.pid).num_fds() < 60


def test_metrics_are_prometheus_text(server: Server) -> None:
    before = server.client.get("/metrics")
    assert before.headers["content-type"].startswith("text/plain; version=0.0.4")
    server.client.post("/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 2})
    families = {f.name: f for f in text_string_to_metric_families(server.client.get("/metrics").text)}
    (model,) = families["openba_serve_model"].samples
    assert model.labels == {"name": "small", "version": "folder"}
    written = families["openba_serve_completion_tokens"].samples[0].value
    assert written > 0
    assert KEY not in before.text


def test_models_and_page(server: Server) -> None:
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model["id"] == "small"
    page = server.client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
