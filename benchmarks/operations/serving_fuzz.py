"""Random requests against a real `openba serve` whose model gives NaN for some of them.

Hypothesis makes the bodies: fields of OpenAI's two requests with plausible and with hostile values, in raw
JSON, so that NaN, 1e400, halves of surrogates and wrong types are among them. One token of the model has an
embedding that is not a number: whoever sends it gets an error, nobody else may notice. Between the random
requests known prompts are asked, whose answers must stay what `openba.model.generate` gives.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.figure import Figure
from openba.data.instruct import encode_input
from openba.model.files import EMBEDDING, HEAD, save_model
from openba.model.generate import generate_ids
from openba.model.loading import load_model

REQUESTS = 10_000
BATCH = 16
"""Random requests sent at once, with as many known prompts among them as there are."""
POISON = "服务"
"""Text whose last token has no finite embedding in the poisoned model."""
KNOWN_TOKENS = 8
STATUSES = (200, 400, 404, 429)
"""What a request may get; 500 only where the model's logits are not finite."""

_HOSTILE = (
    *("null", "true", "false", "0", "-0", "-1", "2", "1e-39", "5e-324", "1e-60", "1e39", "1e308", "1e400"),
    *("-1e400", "NaN", "Infinity", "-Infinity", "9223372036854775807", "9223372036854775808"),
    *("-9223372036854775809", "123456789012345678901234567890", "[]", "{}", "[[]]", '""', '"x"', '"0"'),
    *(r'"\u0000"', r'"\ud800"', r'"\ud83d\ude42"', '"</s>"', '"<extra_id_0>"', "[null]", '{"a": 1}', "[1]"),
    *('"gpt-4"', "64", "128", '"required"', '{"role": 1}', '[{"type": "function"}]', '{"99999999": 1}'),
    *('["a", "b"]', f'"{"a" * 300}"', "[" * 60 + "]" * 60, '{"type": "json_object"}', '{"1e-39": NaN}'),
)
_TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", " ", "房间很干净", "def f(x):\n\treturn x", "\x00", "\u202e", "🙂" * 10, "书" * 300]
    ),
    st.just(f"很好的{POISON}"),
).filter(lambda text: not any("\ud800" <= character <= "\udfff" for character in text))
_RAW_TEXT = _TEXT.map(json.dumps)
_NUMBER = st.one_of(
    st.floats(0, 2, allow_subnormal=True).map(repr),
    st.sampled_from(["1e-39", "1e-60", "5e-324", "0.7", "1", "0", "2"]),
)
_PLAUSIBLE: dict[str, st.SearchStrategy[str]] = {
    "model": st.sampled_from(["null", '""', '"poisoned"']),
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "seed": st.integers(-(2**63), 2**63 - 1).map(str),
    "n": st.sampled_from(["1", "2", "3"]),
    "stop": st.one_of(_RAW_TEXT, st.lists(_TEXT, max_size=5).map(json.dumps)),
    "stream": st.booleans().map(json.dumps),
    "stream_options": st.sampled_from(['{"include_usage": true}', '{"include_obfuscation": false}']),
    "frequency_penalty": st.sampled_from(["0", "0.0"]),
    "presence_penalty": st.sampled_from(["0", "-0.0"]),
    "logit_bias": st.dictionaries(
        st.integers(0, 5000).map(str), st.floats(-100, 100), max_size=5
    ).map(json.dumps),
    "tools": st.just("[]"),
    "tool_choice": st.sampled_from(['"none"', '"auto"']),
    "response_format": st.just('{"type": "text"}'),
    "user": st.one_of(_RAW_TEXT, st.sampled_from(_HOSTILE)),
}  # fmt: skip
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant"]),
            "content": st.one_of(_TEXT, st.none(), st.lists(_TEXT, max_size=2).map(lambda texts: [
                {"type": "text", "text": text} for text in texts
            ])),
        },
        optional={"name": _TEXT, "tool_calls": st.sampled_from([None, []]), "refusal": st.none()},
    ),
    max_size=4,
).map(lambda messages: json.dumps([*messages, {"role": "user", "content": "好"}]))  # fmt: skip


@dataclass(frozen=True)
class Fuzzed:
    """One random request."""

    path: str
    body: bytes


@st.composite
def requests(draw: st.DrawFn) -> Fuzzed:
    """Draw a request: mostly of the right form, some fields hostile."""
    chat = draw(st.booleans())
    fields = {"max_tokens": draw(st.integers(1, KNOWN_TOKENS).map(str))}
    if chat:
        fields["messages"] = draw(_MESSAGES)
        plausible = _PLAUSIBLE | {"logprobs": st.just("true"), "max_completion_tokens": st.just("5")}
    else:
        fields["prompt"] = draw(st.one_of(_RAW_TEXT, st.lists(_TEXT, max_size=3).map(json.dumps)))
        plausible = _PLAUSIBLE | {"logprobs": st.integers(0, 5).map(str), "echo": st.just("false")}
    for name in draw(st.lists(st.sampled_from(sorted(plausible)), max_size=5, unique=True)):
        fields[name] = draw(plausible[name])
    if draw(st.integers(0, 3)) == 0:
        others = ["messages", "prompt", "max_tokens", "top_logprobs", "best_of", "suffix", "surprise"]
        name = draw(st.sampled_from([*sorted(plausible), *others]))
        fields[name] = draw(st.sampled_from(_HOSTILE))
    body = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items()) + "}"
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return Fuzzed(path, body.encode("utf-8", "surrogatepass"))


def poison(folder: Path, out: Path) -> Path:
    """Write a model's copy in which the last token of `POISON` has an embedding that is not a number.

    Its head is its own: of a shared one every answer's logits would have the same NaN.
    """
    model, tokenizer = load_model(folder)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights.setdefault(HEAD, weights[EMBEDDING].clone())
    weights[EMBEDDING][tokenizer.encode(POISON)[-1]] = torch.nan
    architecture = replace(model.architecture, tie_word_embeddings=False)
    save_model(out, weights, architecture, tokenizer)
    return out


@dataclass
class Campaign:
    """Random requests to one server, and what was wrong with their answers."""

    client: httpx.Client
    right_answers: dict[str, str]
    """Prompts and their right answers of `KNOWN_TOKENS` tokens."""
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong_form: list[str] = field(default_factory=list)
    """Answers that are neither OpenAI's nor an allowed error."""
    poisoned: list[str] = field(default_factory=list)
    """Known prompts that got another answer, or none."""

    def run(self, count: int, number: int) -> None:
        """Send about `count` requests, made from the seed `number`."""

        @seed(number)
        @settings(
            max_examples=max(1, count // BATCH),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(requests(), min_size=BATCH, max_size=BATCH))
        def send(batch: list[Fuzzed]) -> None:
            self._send(pool, batch)

        with ThreadPoolExecutor(2 * BATCH) as pool:
            while self.sent < count:
                send()
                number += 1

    def _send(self, pool: ThreadPoolExecutor, batch: Sequence[Fuzzed]) -> None:
        prompts = list(self.right_answers)
        begin = self.sent % len(prompts)
        asked = (prompts[begin:] + prompts)[: BATCH // 4]
        pending_answers = [pool.submit(self._ask, prompt) for prompt in asked]
        for _ in pool.map(self._try, batch):
            pass
        for each in pending_answers:
            each.result()
        self.sent += len(batch)

    def _ask(self, prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": KNOWN_TOKENS}
        for _ in range(200):
            try:
                response = self.client.post("/v1/completions", json=body)
            except httpx.HTTPError as error:
                self.poisoned.append(f"{prompt}: {error!r}")
                return
            if response.status_code != 429:  # random requests with n = 64 fill the queue
                break
        if response.status_code != 200 or response.json()["choices"][0]["text"] != self.right_answers[prompt]:
            self.poisoned.append(f"{prompt}: {response.text[:300]}")

    def _try(self, request: Fuzzed) -> None:
        headers = {"content-type": "application/json"}
        try:
            response = self.client.post(request.path, content=request.body, headers=headers)
        except httpx.HTTPError as error:
            self.wrong_form.append(f"{request}: {error!r}")
            return
        self.statuses[response.status_code] += 1
        if not _is_right(response):
            self.wrong_form.append(f"{request}: {response.status_code} {response.text[:300]}")


def _is_right(response: httpx.Response) -> bool:
    """Whether an answer has OpenAI's form, and its error, if it is one, is allowed."""
    try:
        if response.headers["content-type"].startswith("text/event-stream"):
            lines = [line for line in response.text.split("\n\n") if line]
            parts = [
                json.loads(line.removeprefix("data: "), parse_constant=_no_constant) for line in lines[:-1]
            ]
            errors = [part["error"] for part in parts if "error" in part]
            return lines[-1] == "data: [DONE]" and all(map(_is_allowed, errors))
        body = json.loads(response.content, parse_constant=_no_constant)
        if response.status_code == 200:
            return all(choice["finish_reason"] in ("stop", "length") for choice in body["choices"])
        allowed = response.status_code in STATUSES or _is_allowed(body["error"])
        return allowed and isinstance(body["error"]["message"], str)
    except (ValueError, KeyError, TypeError):
        return False


def _is_allowed(error: dict[str, Any]) -> bool:
    return error["code"] == "engine_error" and "logits are not finite" in error["message"]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def known_answers(folder: Path) -> dict[str, str]:
    """Prompts without the poisoned token, and what the model writes to them."""
    model, tokenizer = load_model(folder)
    poisoned = tokenizer.encode(POISON)[-1]
    prompts = [f"房间 {number}: what is {number * 7}?" for number in range(32)]
    sources = [encode_input(tokenizer, prompt, [], model.architecture.max_seq_length) for prompt in prompts]
    answers = dict(zip(prompts, generate_ids(model, tokenizer, sources, KNOWN_TOKENS), strict=True))
    return {
        prompt: tokenizer.decode(ids)
        for prompt, ids in answers.items()
        if poisoned not in (*tokenizer.encode(prompt), *ids)
    }


def figures(folder: Path, serve: Callable[[Path], Any]) -> Iterator[Figure]:
    """Args: a model's folder; what starts a server of a model and gives its address."""
    known_texts = known_answers(folder)
    with (
        serve(poison(folder, folder.with_name("poisoned"))) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        campaign = Campaign(client, known_texts)
        campaign.run(REQUESTS, number=0)
        alive = client.get("/health").json()["status"] == "ok"
    ended = len(campaign.poisoned) + (not alive)
    for problem in (campaign.poisoned + campaign.wrong_form)[:5]:
        print(problem)
    yield Figure("fuzzed requests sent", campaign.sent, "", REQUESTS, "higher")
    for status, count in sorted(campaign.statuses.items()):
        yield Figure(f"fuzzed requests answered {status}", count, "")
    yield Figure("fuzzed requests that end or poison the engine", ended, "", 0)
    yield Figure("fuzzed requests answered in another form", len(campaign.wrong_form), "", 0)
