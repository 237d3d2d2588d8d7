"""A model in other forms: the same answers, the same tensors back, and refusals in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ctranslate2
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.model.ctranslate2_files import vocabulary_of
from openba.model.export import Format, export
from openba.model.files import load_weights, save_model
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.model.seq2seq import initialise
from openba.recipes.architecture import Architecture
from openba.tokenizer.tokenizer import Tokenizer

RELEASED = Architecture(
    vocab_size=1, hidden_size=32, kv_channels=16, num_heads=3, ffn_hidden_size=96, num_layers=1,
    num_decoder_layers=2, add_qkv_bias=True, add_lm_head_bias=True, tie_word_embeddings=False,
)  # fmt: skip
MODERN = replace(
    RELEASED, norm="rmsnorm", add_qkv_bias=False, add_lm_head_bias=False, tie_word_embeddings=True,
    scale_embedding=True, ffn_multiple=16,
)  # fmt: skip
PROMPTS = ["把下面的句子翻译成英文：今天天气很好。", "def f(x):", "a </s> in the text", "x"]


def saved(folder: Path, tokenizer: Tokenizer, architecture: Architecture) -> OpenBAModel:
    torch.manual_seed(7)
    model = OpenBAModel(replace(architecture, vocab_size=tokenizer.size + 5)).eval()
    with torch.no_grad():
        for module in model.modules():
            initialise(module, 0.4)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which start at one and zero
                parameter += 0.3 * torch.randn_like(parameter)
    save_model(folder, model.state_dict(), model.architecture, tokenizer)
    return model


@pytest.mark.parametrize("architecture", [RELEASED, MODERN], ids=["released", "rmsnorm"])
def test_ctranslate2_writes_the_same_answers(
    architecture: Architecture, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    saved(tmp_path / "model", tokenizer, architecture)
    export(tmp_path / "model", tmp_path / "engine", "ctranslate2")
    model, tokenizer = load_model(tmp_path / "model")
    sources = [encode_input(tokenizer, prompt, (), 64) for prompt in PROMPTS]
    vocabulary = vocabulary_of(tokenizer, model.architecture)
    assert len(set(vocabulary)) == len(vocabulary) == model.architecture.vocab_size
    translator = ctranslate2.Translator(str(tmp_path / "engine"), compute_type="float32")
    results = translator.translate_batch(
        [[vocabulary[index] for index in source] for source in sources],
        target_prefix=[[vocabulary[tokenizer.sentinel(0)]]] * len(sources),
        beam_size=1, max_decoding_length=21, suppress_sequences=[[name] for name in vocabulary[-5:]],
    )  # fmt: skip
    index_of = {name: index for index, name in enumerate(vocabulary)}
    answers = [tokenizer.decode([index_of[name] for name in each.hypotheses[0]]) for each in results]
    expected = generate(model, tokenizer, sources, 20)
    assert answers == expected
    assert len(set(expected)) == len(expected)  # prompts matter: four answers, not one


def test_the_released_form_goes_there_and_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", tokenizer, RELEASED)
    export(tmp_path / "model", tmp_path / "released", "released")
    export(tmp_path / "released", tmp_path / "again", "safetensors")
    again = load_weights(tmp_path / "again")
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor.half()) for name, tensor in model.state_dict().items())
    assert load_model(tmp_path / "again")[1].encode("房间 x") == tokenizer.encode("房间 x")


@pytest.mark.parametrize(
    ("form", "quantization", "message"),
    [
        (
            "ctranslate2",
            "float32",
            "sandwich_norm is true, and CTranslate2 has no norm behind attention alone",
        ),
        ("ctranslate2", "int3", "quantization: 'int3' is unknown"),
        ("released", "float32", "sandwich_norm is True; the released form allows False only"),
    ],
)
def test_what_a_form_cannot_say_is_refused_and_nothing_is_left(
    form: Format, quantization: str, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    saved(tmp_path / "model", tokenizer, replace(RELEASED, sandwich_norm=True))
    with pytest.raises(UserError, match=message):
        export(tmp_path / "model", tmp_path / "out", form, quantization)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_files_is_not_written_over(tokenizer: Tokenizer, tmp_path: Path) -> None:
    saved(tmp_path / "model", tokenizer, RELEASED)
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(UserError, match="exists and is not empty"):
        export(tmp_path / "model", tmp_path / "model", "released")
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_onnx_is_refused_with_its_reason(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "out"), "--format", "onnx"])
    assert outcome.exit_code != 0
    assert "--format onnx: not written" in str(outcome.exception)
    assert not (tmp_path / "out").exists()
