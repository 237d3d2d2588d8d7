"""`openba serve --engine ctranslate2`: the same greedy answers, and what that engine refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.model.files import save_model
from openba.model.generate import generate_ids
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.serve.ctranslate2_engine import CTranslate2Engine
from openba.serve.engine import EngineSettings, Generation
from openba.serve.sampling import Sampling
from openba.tokenizer.tokenizer import Tokenizer
from tests.serve.conftest import Server, start
from tests.serve.test_engine import TEXTS, Watch

# The released form: CTranslate2 cannot say the sandwich norm.
RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=3,
    norm="layernorm", sandwich=False, attention_bias=True, init_std=0.3, head_bias=True, tie_embeddings=False,
    positions=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)  # with this bias answers of 16 to 24 tokens
    model = OpenBAModel(RECIPE.architecture(tokenizer.size))
    with torch.no_grad():
        model.lm_head.bias[tokenizer.eos] += 3.5
    released = tmp_path_factory.mktemp("ctranslate2") / "released"
    save_model(released, model.state_dict(), model.architecture, tokenizer)
    return released


@pytest.fixture(scope="module")
def sources(tokenizer: Tokenizer) -> list[list[int]]:
    return [encode_input(tokenizer, text, (), 128) for text in TEXTS]


@pytest.fixture(scope="module")
def expected(folder: Path, sources: list[list[int]]) -> list[list[int]]:
    """What our own engine writes, without the closing token."""
    model, tokenizer = load_model(folder)
    answers = generate_ids(model, tokenizer, sources, 24)
    return [[token_id for token_id in answer if token_id != tokenizer.eos] for answer in answers]


def started(
    folder: Path, rows: int = 4, queue: int = 40, quantization: str = "float32"
) -> tuple[CTranslate2Engine, Watch]:
    watch = Watch()
    tokenizer = Tokenizer.load(folder)
    engine = CTranslate2Engine(
        folder, EngineSettings(tokenizer, rows, queue, watch), quantization=quantization, device="cpu"
    )  # fmt: skip
    return engine, watch


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[tuple[CTranslate2Engine, Watch]]:
    engine, watch = started(folder)
    yield engine, watch
    engine.close()
    engine.thread.join(10)
    assert not engine.thread.is_alive()


def test_greedy_tokens_are_those_of_our_engine(
    running: tuple[CTranslate2Engine, Watch], sources: list[list[int]], expected: list[list[int]]
) -> None:
    engine, watch = running
    generations = [Generation(source, 24) for source in sources * 3]
    engine.submit(generations)
    watch.until(generations)
    assert [generation.output_ids for generation in generations] == expected * 3
    for generation in generations:
        assert generation.finish_reason == ("length" if len(generation.output_ids) == 24 else "stop")
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    assert engine.state(1.0) == "ok"
    assert engine.tokens > 0


def test_each_row_has_its_own_length(
    running: tuple[CTranslate2Engine, Watch], sources: list[list[int]], expected: list[list[int]]
) -> None:
    engine, watch = running
    generations = [Generation(source, length) for source, length in zip(sources, (1, 24, 3, 7), strict=True)]
    engine.submit(generations)
    watch.until(generations)
    for generation, answer in zip(generations, expected, strict=True):
        assert generation.output_ids == answer[: generation.max_new_tokens]


def test_tokens_are_reported_as_they_come(
    running: tuple[CTranslate2Engine, Watch], sources: list[list[int]], expected: list[list[int]]
) -> None:
    engine, watch = running
    longest = max(range(len(sources)), key=lambda row: len(expected[row]))
    generation = Generation(sources[longest], 24, notify_each_step=True)
    engine.submit([generation])
    watch.until([generation])
    lengths = [length for told, length, _ in watch.told if told is generation]
    assert len(set(lengths)) > 5
    assert lengths == sorted(lengths)


def test_cancelled_row_ends_and_others_go_on(
    folder: Path, sources: list[list[int]], expected: list[list[int]]
) -> None:
    engine, watch = started(folder, rows=2)
    blocked = [Generation(source, 24) for source in sources]
    blocked[1].is_cancelled = True
    engine.submit(blocked)
    watch.until(blocked)
    engine.close()
    assert blocked[1].finish_reason == "cancelled"
    assert [blocked[row].output_ids for row in (0, 2, 3)] == [expected[row] for row in (0, 2, 3)]


def test_samples_differ_and_ids_are_the_tokenizers(
    running: tuple[CTranslate2Engine, Watch], sources: list[list[int]]
) -> None:
    engine, watch = running
    hot = Sampling(temperature=1.5, top_p=0.95)
    generations = [Generation(sources[0], 24, sampling=hot) for _ in range(6)]
    generations += [Generation(sources[0], 24)]  # another batch: its options differ
    engine.submit(generations)
    watch.until(generations)
    assert len({str(generation.output_ids) for generation in generations}) > 3
    ids = [token_id for generation in generations for token_id in generation.output_ids]
    assert max(ids) < engine.vocabulary_size


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(logit_bias={5: 1.0}), "logit_bias"),
        (Sampling(top_logprobs=0), "logprobs"),
        (Sampling(temperature=1.0, seed=1), "seed"),
    ],
)
def test_what_the_engine_lacks_is_refused_by_name(
    running: tuple[CTranslate2Engine, Watch], sources: list[list[int]], sampling: Sampling, field: str
) -> None:
    with pytest.raises(UserError, match=f"^{field}: the engine ctranslate2 .*--engine openba"):
        running[0].submit([Generation(sources[0], 4, sampling=sampling)])


def test_int8_answers(folder: Path, sources: list[list[int]]) -> None:
    engine, watch = started(folder, quantization="int8")
    generations = [Generation(source, 24) for source in sources]
    engine.submit(generations)
    watch.until(generations)
    engine.close()
    assert all(generation.finish_reason in ("stop", "length") for generation in generations)


def test_paper_form_and_unknown_device_are_refused(
    model_folder: Path, folder: Path, sources: list[list[int]]
) -> None:
    with pytest.raises(UserError, match="sandwich_norm is true"):
        started(model_folder)
    tokenizer = Tokenizer.load(folder)
    with pytest.raises(UserError, match="--device tpu: CTranslate2 cannot use it"):
        CTranslate2Engine(
            folder, EngineSettings(tokenizer, 1, 1, Watch()), quantization="float32", device="tpu"
        )  # fmt: skip


@pytest.fixture(scope="module")
def server(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    running = start(str(folder), "--engine", "ctranslate2", environment=environment)
    yield running
    running.client.close()
    running.process.terminate()
    assert running.process.wait(20) in (0, -15)


def test_server_answers_streams_and_refuses(
    server: Server, folder: Path, sources: list[list[int]], expected: list[list[int]]
) -> None:
    tokenizer = Tokenizer.load(folder)
    body = {"prompt": list(TEXTS), "max_tokens": 24}
    answer = server.client.post("/v1/completions", json=body).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [tokenizer.decode(ids) for ids in expected]
    stream = server.client.post(
        "/v1/completions", json={"prompt": TEXTS[0], "max_tokens": 24, "stream": True}
    )
    assert stream.text.endswith("data: [DONE]\n\n")
    refused = server.client.post("/v1/completions", json={"prompt": "a", "logprobs": 1})
    assert refused.status_code == 400
    assert "logprobs: the engine ctranslate2" in refused.json()["error"]["message"]
    metrics = server.client.get("/metrics").text
    assert "openba_" in metrics
    health = server.client.get("/health").json()
    assert health["status"] == "ok"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "vllm"], "--engine vllm: there is no such engine"),
        (["--quantization", "int8"], "--quantization: only of --engine ctranslate2"),
        (["--engine", "ctranslate2", "--adapter", "a=b"], "--adapter: the engine ctranslate2"),
        (["--engine", "ctranslate2", "--cluster"], "--cluster: not with --engine ctranslate2"),
        (["--engine", "ctranslate2", "--quantization", "int3"], "quantization: 'int3' is unknown"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, options: list[str], message: str) -> None:
    began = time.monotonic()
    outcome = CliRunner().invoke(app, ["serve", str(folder), "--port", "0", *options])
    assert outcome.exit_code != 0
    assert message in str(outcome.exception) + outcome.output
    assert time.monotonic() - began < 30
