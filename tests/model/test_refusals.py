"""What the transformers model cannot use is refused in one line that names the tensor, key or row."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openba import OpenBAConfig, OpenBAForConditionalGeneration
from openba.errors import UserError
from openba.model.files import load_architecture, load_weights, restore
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel

VOCAB = 61
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 24, "kv_channels": 8, "num_heads": 3, "ffn_hidden_size": 36,
    "ffn_multiple": 8, "num_layers": 1, "num_decoder_layers": 2, "hidden_dropout": 0.0,
    "attention_dropout": 0.0, "max_seq_length": 16, "decoder_max_seq_length": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> OpenBAForConditionalGeneration:
    torch.manual_seed(0)
    return OpenBAForConditionalGeneration(OpenBAConfig(**SHAPE)).eval()


@pytest.fixture
def folder(model: OpenBAForConditionalGeneration, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def spoilt(tensor: Tensor) -> Tensor:
    """Row 1 has an id beyond the vocabulary at position 2."""
    return tensor.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(VOCAB))


def our_loader(folder: Path) -> None:
    restore(OpenBAModel(load_architecture(folder)), load_weights(folder), folder)


def refusal(function: Callable[[], object], kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as error:
        function()
    assert "\n" not in str(error.value)
    return str(error.value)


QKV = "encoder.block.0.self_attn.qkv.weight"
TENSORS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    f"tensor {QKV} is missing": lambda w: w.pop(QKV),
    "tensor decoder.block.7.mlp.fc_in.weight is unexpected": lambda w: w.update(
        {"decoder.block.7.mlp.fc_in.weight": torch.zeros(2)}
    ),
    f"tensor {QKV} has shape [72, 23], not [72, 24]": lambda w: w.update({QKV: w[QKV][:, 1:].clone()}),
    "tensor shared_embedding.weight has shape [60, 24], not [61, 24]": lambda w: w.update(
        {"shared_embedding.weight": w["shared_embedding.weight"][1:].clone()}
    ),
    "tensor shared_embedding.weight is missing": lambda w: w.pop("shared_embedding.weight"),
}


@pytest.mark.parametrize("message", TENSORS)
@pytest.mark.parametrize("asked", [{}, {"ignore_mismatched_sizes": True}], ids=["plain", "ignore"])
def test_a_wrong_tensor_is_named_alike_by_both_loaders(
    folder: Path, message: str, asked: dict[str, Any]
) -> None:
    weights = load_file(folder / "model.safetensors")
    TENSORS[message](weights)
    save_file(weights, folder / "model.safetensors")
    line = f"{folder}: {message}; weights and config do not belong together"
    assert refusal(lambda: OpenBAForConditionalGeneration.from_pretrained(folder, **asked)) == line
    assert refusal(lambda: our_loader(folder), UserError) == line


def test_a_refusal_is_one_line_without_a_report_beside_it(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[QKV]
    save_file(weights, folder / "model.safetensors")
    log, told = logging.getLogger("transformers"), io.StringIO()
    handler = logging.StreamHandler(told)
    log.addHandler(handler)
    try:
        refusal(lambda: OpenBAForConditionalGeneration.from_pretrained(folder))
    finally:
        log.removeHandler(handler)
    assert told.getvalue() == ""


def test_a_head_beside_a_tied_embedding_is_refused_unless_it_is_a_copy(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    embedding = weights["shared_embedding.weight"]
    save_file(weights | {"lm_head.weight": embedding.clone()}, folder / "model.safetensors")
    loaded = OpenBAForConditionalGeneration.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.shared_embedding.weight
    our_loader(folder)
    for head in (embedding.index_put((torch.tensor(7), torch.tensor(3)), torch.tensor(0.5)), embedding[1:]):
        save_file(weights | {"lm_head.weight": head.clone()}, folder / "model.safetensors")
        line = refusal(lambda: our_loader(folder), UserError)
        assert line.startswith(f"{folder}: tensor lm_head.weight is not the embedding")
        assert refusal(lambda: OpenBAForConditionalGeneration.from_pretrained(folder)) == line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("norm", "batchnorm"), ("norm", None), ("hidden_size", 24.0), ("num_heads", "3")),
        *(("vocab_size", True), ("num_layers", 0), ("num_decoder_layers", -2), ("kv_channels", 7)),
        *(("max_seq_length", None), ("hidden_dropout", "x"), ("attention_dropout", 1.0)),
        *(("layer_norm_epsilon", 0), ("rope_theta", float("nan")), ("rope_theta", 0.0)),
        *(("tie_word_embeddings", "yes"), ("sandwich_norm", 1)),
    ],
)
def test_a_wrong_value_of_the_config_names_its_key(folder: Path, key: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    line = refusal(lambda: OpenBAForConditionalGeneration.from_pretrained(folder))
    assert line.startswith(f"{key}: {value!r} is ") or line.startswith(f"{key}: {value} is ")
    assert refusal(lambda: our_loader(folder), UserError) == f"{folder / 'config.json'}: {line}"


def test_biases_of_the_feed_forward_layer_are_refused() -> None:
    assert refusal(lambda: OpenBAConfig(**SHAPE, add_ffn_bias=True)).startswith("add_ffn_bias: true is not")


def test_a_damaged_file_names_its_folder(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    line = refusal(lambda: OpenBAForConditionalGeneration.from_pretrained(folder), OSError)
    assert line.startswith(f"{folder}: a file of weights is damaged")
    path.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        OpenBAForConditionalGeneration.from_pretrained(folder)


OUTSIDE = f"is outside the vocabulary of {VOCAB}; the tokenizer does not belong to this model"
ANY = "there is no token in a batch of shape"
LONG = "tokens are more than the model's"
CALLS: dict[str, tuple[str, Tensor]] = {
    f"input_ids row 1, position 2: id {VOCAB} {OUTSIDE}": ("input_ids", spoilt(ids(2, 4))),
    f"decoder_input_ids row 1, position 2: id {VOCAB} {OUTSIDE}": ("decoder_input_ids", spoilt(ids(2, 4))),
    f"decoder_input_ids row 0, position 0: id -5 {OUTSIDE}": ("decoder_input_ids", ids(2, 4) * 0 - 5),
    f"labels row 1, position 1: id 99 {OUTSIDE}": ("labels", torch.tensor([[3, 4], [IGNORE, 99]])),
    f"labels row 0, position 0: id -1 {OUTSIDE}": ("labels", torch.tensor([[-1, 4], [5, 6]])),
    f"input_ids: {ANY} [2, 0]; give at least one a row": ("input_ids", ids(2, 0)),
    f"input_ids: {ANY} [0, 3]; give at least one a row": ("input_ids", ids(0, 3)),
    f"decoder_input_ids: {ANY} [2, 0]; give at least one a row": ("decoder_input_ids", ids(2, 0)),
    "input_ids row 1: nothing but padding; give at least one token": (
        "attention_mask",
        torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]),
    ),
    f"input row 0: 17 {LONG} 16 positions": ("input_ids", ids(2, 17)),
    f"decoder input row 0: 13 {LONG} 12 positions": ("decoder_input_ids", ids(2, 13)),
    "attention_mask: its shape is [2, 5], not [2, 4] as its tokens'": ("attention_mask", torch.ones(2, 5)),
    "decoder_attention_mask: its shape is [2, 3], not [2, 2] as its tokens'": (
        "decoder_attention_mask",
        torch.ones(2, 3),
    ),
    "decoder_input_ids: 3 rows, but 2 of the encoder": ("decoder_input_ids", ids(3, 2)),
}


@pytest.mark.parametrize("message", CALLS)
@pytest.mark.parametrize("cached", [False, True])
def test_input_that_has_no_meaning_names_its_row(
    model: OpenBAForConditionalGeneration, message: str, cached: bool
) -> None:
    name, value = CALLS[message]
    inputs = {"input_ids": ids(2, 4), "decoder_input_ids": ids(2, 2), name: value}
    if name == "labels":
        del inputs["decoder_input_ids"]
    assert refusal(lambda: model(**inputs, use_cache=cached)) == message


def test_generation_stops_at_the_last_position(model: OpenBAForConditionalGeneration) -> None:
    assert model.generate(ids(2, 4), max_new_tokens=11, eos_token_id=None).shape == (2, 12)
    line = refusal(lambda: model.generate(ids(2, 4), max_new_tokens=13, eos_token_id=None))
    assert line == "decoder input row 0: 13 tokens are more than the model's 12 positions"
    assert "input_ids: there is no token" in refusal(lambda: model.generate(ids(2, 0), max_new_tokens=2))


@pytest.mark.parametrize("cached", [False, True])
def test_what_may_be_padding_is_never_nan(model: OpenBAForConditionalGeneration, cached: bool) -> None:
    seen = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 1]])
    inputs = {"input_ids": ids(3, 4), "decoder_input_ids": ids(3, 3), "decoder_attention_mask": seen}
    assert model(**inputs, use_cache=cached).logits.isfinite().all()
    model.zero_grad()
    loss = model(input_ids=ids(2, 4), labels=torch.full((2, 3), IGNORE)).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_the_trainer_is_told_of_ids_outside_the_vocabulary() -> None:
    plain = OpenBAModel(OpenBAConfig(**SHAPE).architecture())
    good = {"encoder_ids": ids(2, 4), "decoder_ids": ids(2, 3), "labels": ids(2, 3, seed=2)}
    everything = torch.ones(2, 4, dtype=torch.bool)
    for name, tensor in good.items():
        bad = good | {name: spoilt(tensor)}
        assert refusal(lambda b=bad: plain.loss(mask=everything, **b)) == (
            f"{name} row 1, position 2: id {VOCAB} {OUTSIDE}"
        )
    assert plain.loss(mask=everything, **good).isfinite()


def test_a_call_without_tokens_is_refused(model: OpenBAForConditionalGeneration) -> None:
    assert refusal(model).startswith("input_ids: missing")
    assert refusal(lambda: model(input_ids=ids(1, 4))).startswith("decoder_input_ids: missing")
