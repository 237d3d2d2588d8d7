"""Adapters over one base: each row gets the tokens that its adapter writes alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.model.adapter import AdapterWriter, add_adapter, trained_state
from openba.model.adapter_bank import NO_ADAPTER, AdapterBank
from openba.model.generate import generate_ids
from openba.model.loading import load_model
from openba.recipes.adapter import AdapterRecipe
from openba.serve.engine import Generation
from openba.tokenizer.tokenizer import Tokenizer
from tests.serve.conftest import Server, start
from tests.serve.test_engine import TEXTS, started

KINDS = {"one": "lora", "two": "rslora", "three": "lora"}


def write_adapter(base: Path, folder: Path, tokenizer: Tokenizer, kind: str, seed: int) -> Path:
    """A random adapter, large enough for its answers to differ from the base's."""
    model, _ = load_model(base)
    torch.manual_seed(seed)
    targets = ["qkv", "fc_out"] if seed % 2 else ["q", "kv", "o", "fc_in"]
    recipe = AdapterRecipe.model_validate({"kind": kind, "rank": 2 + seed, "targets": targets})
    add_adapter(model, recipe)
    for name, parameter in trained_state(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    AdapterWriter(model, recipe, tokenizer, base).write(folder, trained_state(model))
    return folder


@pytest.fixture(scope="module")
def folders(
    model_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(model_folder, root / name, tokenizer, kind, seed)
        for seed, (name, kind) in enumerate(KINDS.items(), 1)
    }


@pytest.fixture(scope="module")
def alone(model_folder: Path, folders: dict[str, Path], tokenizer: Tokenizer) -> dict[int, list[list[int]]]:
    """Number of an adapter -> what its merged model writes to each text."""
    models = {NO_ADAPTER: model_folder} | dict(enumerate(folders.values()))
    sources = [encode_input(tokenizer, text, (), 128) for text in TEXTS]
    answers = {}
    for number, folder in models.items():
        model, _ = load_model(folder)
        answers[number] = generate_ids(model, tokenizer, sources, 20)
    return answers


def test_answers_of_the_adapters_differ(alone: dict[int, list[list[int]]]) -> None:
    assert len({str(answers) for answers in alone.values()}) == 4


def test_rows_of_all_adapters_in_one_batch_mix_no_token(
    model_folder: Path, folders: dict[str, Path], alone: dict[int, list[list[int]]], tokenizer: Tokenizer
) -> None:
    model, _ = load_model(model_folder)
    bank = AdapterBank(model, model_folder, folders)
    engine, watch = started((model, tokenizer), rows=7, queue=200, bank=bank)
    chosen = [(number, text) for number in alone for text in range(len(TEXTS))] * 3
    random.Random(0).shuffle(chosen)
    generations = [
        Generation(encode_input(tokenizer, TEXTS[text], (), 128), 20, adapter=number)
        for number, text in chosen
    ]
    engine.submit(generations)
    watch.until(generations)
    engine.close()
    for (number, text), generation in zip(chosen, generations, strict=True):
        expected = [token for token in alone[number][text] if token != tokenizer.eos]
        assert generation.output_ids == expected


@pytest.fixture(scope="module")
def server(model_folder: Path, folders: dict[str, Path], environment: dict[str, str]) -> Iterator[Server]:
    options = [part for name, folder in folders.items() for part in ("--adapter", f"{name}={folder}")]
    server = start(str(model_folder), *options, environment=environment)
    yield server
    server.process.terminate()
    server.process.wait(20)


def test_a_request_chooses_by_its_model(
    server: Server, alone: dict[int, list[list[int]]], tokenizer: Tokenizer
) -> None:
    listed = [card["id"] for card in server.client.get("/v1/models").json()["data"]]
    assert listed == ["small", "one", "two", "three"]
    for number, name in enumerate(["small", *KINDS], NO_ADAPTER):
        body = {"model": name, "prompt": TEXTS[0], "max_tokens": 20, "temperature": 0}
        answer = server.client.post("/v1/completions", json=body).json()
        assert answer["model"] == name
        assert answer["choices"][0]["text"] == tokenizer.decode(alone[number][0])
    refused = server.client.post("/v1/completions", json={"model": "four", "prompt": "x"})
    assert refused.status_code == 404
    assert "'small', 'one', 'two', 'three' are" in refused.json()["error"]["message"]


def test_adapters_that_cannot_share_a_batch_are_refused(
    model_folder: Path, folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, _ = load_model(model_folder)
    dora = write_adapter(model_folder, tmp_path / "dora", tokenizer, "dora", 1)
    shutil.copytree(model_folder, tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    cases = [
        (model_folder, dora, "DoRA rescales the weights"),
        (model_folder, model_folder, "holds no adapter"),
        (tmp_path / "other", folders["one"], "was trained on other weights"),
    ]
    for base, folder, message in cases:
        with pytest.raises(UserError, match=message) as error:
            AdapterBank(model, base, {"x": folder})
        assert "\n" not in str(error.value)
