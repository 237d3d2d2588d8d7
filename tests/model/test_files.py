"""A model on disk: the same model comes back, damage is told in one line, nothing is unpickled."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor

from openba.errors import UserError
from openba.model.exported_code import ENTRY_MODULES, exported_code
from openba.model.files import (
    CONFIG,
    INDEX,
    TORCH_INDEX,
    TORCH_WEIGHTS,
    WEIGHTS,
    load_architecture,
    load_weights,
    restore,
    save_model,
    write_released,
    write_weights,
)
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.model.rows import Rows
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    norm="layernorm", attention_bias=True, head_bias=True, tie_embeddings=False, scale_embedding=False,
    dropout=0.1, positions=48, init_std=0.02,
)  # fmt: skip


def logits(model: OpenBAModel) -> Tensor:
    ids = torch.arange(3, 15)[None]
    rows = Rows.padded(torch.ones_like(ids, dtype=torch.bool))
    with torch.no_grad():
        return model.logits(model.hidden(ids, rows, ids, rows))


def saved(
    folder: Path, tokenizer: Tokenizer, recipe: ModelRecipe = RECIPE, dtype: torch.dtype = torch.float32
) -> OpenBAModel:
    torch.manual_seed(0)
    model = OpenBAModel(recipe.architecture(tokenizer.size)).to(dtype).eval()
    save_model(folder, model.state_dict(), model.architecture, tokenizer)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_bit_by_bit(
    tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    recipe = RECIPE.model_copy(update={"tie_embeddings": tied})
    model = saved(tmp_path / "model", tokenizer, recipe, dtype)
    loaded, its_tokenizer = load_model(tmp_path / "model")
    assert loaded.architecture == recipe.architecture(tokenizer.size)
    assert loaded.architecture.vocab_size == 4224
    assert not loaded.training
    assert loaded.shared_embedding.weight.dtype == dtype
    assert torch.equal(logits(loaded), logits(model))
    assert its_tokenizer.encode("x = 1") == tokenizer.encode("x = 1")


def test_weights_that_share_one_buffer_are_saved_each(tokenizer: Tokenizer, tmp_path: Path) -> None:
    # As DeepSpeed holds them: every parameter a view into one flat tensor.
    model = saved(tmp_path / "plain", tokenizer)
    state = model.state_dict()
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    views = {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}
    save_model(tmp_path / "views", views, model.architecture, tokenizer)
    assert (tmp_path / "views" / WEIGHTS).read_bytes() == (tmp_path / "plain" / WEIGHTS).read_bytes()


def test_the_folder_holds_what_transformers_needs_and_nothing_else(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    saved(tmp_path, tokenizer)
    own = {CONFIG, "generation_config.json", WEIGHTS, "README.md"}
    words = {"spiece.model", "tokenizer_config.json", "chat_template.jinja"}
    words |= {"tokenization_openba.py", "pieces_openba.py"}
    assert {path.name for path in tmp_path.iterdir()} == own | words | set(exported_code())
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == tokenizer.pad
    assert generation["forced_bos_token_id"] == tokenizer.sentinel(0)
    assert generation["eos_token_id"] == tokenizer.eos


def test_the_modules_of_an_exported_folder_import_nothing_of_openba() -> None:
    texts = exported_code()
    assert {f"{name}.py" for name in ENTRY_MODULES} < set(texts)
    for text in texts.values():
        assert "from openba" not in text
        assert "import openba" not in text


def test_padding_rows_of_the_embedding_are_never_generated(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = saved(tmp_path, tokenizer)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(range(tokenizer.size, model.architecture.vocab_size))


def test_every_file_has_the_mode_of_the_umask(tokenizer: Tokenizer, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        saved(tmp_path / "model", tokenizer)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {"0o640"}


def test_the_card_states_the_shape_and_the_tokenizer_the_length(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = saved(tmp_path, tokenizer)
    card = (tmp_path / "README.md").read_text()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"| parameters | {count:,} |" in card
    assert ModelCard(card).data.to_dict()["library_name"] == "transformers"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 48


@pytest.mark.parametrize("shards", [1, 3])
def test_a_torch_checkpoint_is_loaded_without_running_code(
    tokenizer: Tokenizer, tmp_path: Path, shards: int
) -> None:
    model = saved(tmp_path, tokenizer)
    (tmp_path / WEIGHTS).unlink()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if shards == 1:
        torch.save(state, tmp_path / TORCH_WEIGHTS)
        last = tmp_path / TORCH_WEIGHTS
    else:
        files = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(state)}
        for file in set(files.values()):
            torch.save({name: state[name] for name in state if files[name] == file}, tmp_path / file)
        (tmp_path / TORCH_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
        last = tmp_path / max(files.values())
    loaded, _ = load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    last.write_bytes(last.read_bytes()[:-2000])  # a half-downloaded shard
    with pytest.raises(UserError, match=r"not readable .*fetch it again"):
        load_model(tmp_path)
    last.write_bytes(pickle.dumps({"x": Path}))  # a class is not a tensor
    with pytest.raises(UserError, match="not readable") as error:
        load_model(tmp_path)
    assert_line(error.value, last)


def test_shards_and_their_index_are_as_one_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = saved(tmp_path, tokenizer)
    (tmp_path / WEIGHTS).unlink()
    write_weights(tmp_path, model.state_dict(), "100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / WEIGHTS).exists()
    loaded, _ = load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    places = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert places.keys() == model.state_dict().keys()
    lost = tmp_path / places["encoder.final_layernorm.weight"]
    lost.rename(tmp_path / "gone")
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert_line(error.value, lost)
    # A shard of the right name without its tensor is no partial model either.
    write_weights(tmp_path / "..", {"other": torch.zeros(1)}, "5GB")
    (tmp_path / ".." / WEIGHTS).rename(lost)
    with pytest.raises(UserError, match=r"tensor \S+ is not in it; fetch the shard again"):
        load_model(tmp_path)


def assert_line(error: Exception, *parts: object) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert str(part) in str(error)


Damage = Callable[[dict[str, Tensor]], object]
DAMAGES: dict[str, Damage] = {
    "tensor decoder.block.1.mlp.fc_in.weight is missing": lambda w: w.pop("decoder.block.1.mlp.fc_in.weight"),
    "tensor decoder.block.2.extra is unexpected": lambda w: w.update(
        {"decoder.block.2.extra": torch.ones(2)}
    ),
    "tensor encoder.block.0.self_attn.qkv.weight has shape [95, 32], not [96, 32]": lambda w: w.update(
        {"encoder.block.0.self_attn.qkv.weight": torch.zeros(95, 32)}
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_wrong_tensor_is_named(tokenizer: Tokenizer, tmp_path: Path, message: str) -> None:
    model = saved(tmp_path, tokenizer)
    weights, before = dict(model.state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    DAMAGES[message](weights)
    write_weights(tmp_path, weights, "5GB")
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert_line(error.value, f"{tmp_path}: {message}; weights and config do not belong together")
    with pytest.raises(UserError):
        restore(model, {name: tensor + 1 for name, tensor in weights.items()}, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


CONFIGS = {
    "norm: 'batchnorm' is unknown": {"norm": "batchnorm"},
    "hidden_size: 32.0 is not a size": {"hidden_size": 32.0},
    "num_heads: '2' is not a size": {"num_heads": "2"},
    "num_layers: 0 is not a size": {"num_layers": 0},
    "vocab_size: True is not a size": {"vocab_size": True},
    "max_seq_length: None is not a size": {"max_seq_length": None},
    "kv_channels: 15 is odd": {"kv_channels": 15},
}


@pytest.mark.parametrize("message", CONFIGS)
def test_a_config_that_no_model_can_have_names_its_key(
    tokenizer: Tokenizer, tmp_path: Path, message: str
) -> None:
    saved(tmp_path, tokenizer)
    config = json.loads((tmp_path / CONFIG).read_text()) | CONFIGS[message]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert_line(error.value, tmp_path / CONFIG, message)


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden_size": 8}', "\udc80"])
def test_a_config_that_is_none_is_one_line(tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    saved(tmp_path, tokenizer)
    (tmp_path / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert_line(error.value, tmp_path / CONFIG)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OpenBAModel(replace(RECIPE.architecture(tokenizer.size), vocab_size=tokenizer.size - 1))
    save_model(tmp_path, model.state_dict(), model.architecture, tokenizer)
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert_line(error.value, f"the tokenizer has {tokenizer.size} ids, the embedding {tokenizer.size - 1}")


@pytest.mark.parametrize("tied", [True, False])
def test_the_released_form_there_and_back(tmp_path: Path, tied: bool) -> None:
    recipe = RECIPE.model_copy(update={"tie_embeddings": tied, "sandwich": False, "ffn_multiple": 256})
    torch.manual_seed(0)
    model = OpenBAModel(recipe.architecture(100)).half()
    write_released(tmp_path, model.state_dict(), model.architecture)
    found, weights = load_architecture(tmp_path), load_weights(tmp_path)
    assert found == replace(model.architecture, tie_word_embeddings=False)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    loaded = OpenBAModel(found)
    restore(loaded, weights, tmp_path, assign=True)
    assert torch.equal(logits(loaded.eval()), logits(model.eval()))
    head = model.shared_embedding.weight if tied else model.lm_head.weight
    assert torch.equal(weights["lm_head.weight"], head)


@pytest.mark.parametrize(
    "fields", [{"norm": "rmsnorm"}, {"sandwich_norm": True}, {"rope_theta": 5e5}, {"ffn_multiple": 8}]
)
def test_what_the_released_form_cannot_say_is_not_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    plain = {"sandwich_norm": False, "ffn_multiple": 256}
    model = replace(RECIPE.architecture(100), **plain | fields)
    with pytest.raises(
        UserError, match=f"^--format released: {next(iter(fields))} is .*; the released form allows"
    ):
        write_released(tmp_path / "out", {}, model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_a_truncated_file_is_one_line(tokenizer: Tokenizer, tmp_path: Path, keep: int) -> None:
    saved(tmp_path, tokenizer)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:keep])
    for load in (load_weights, load_model):
        with pytest.raises(UserError) as error:
            load(tmp_path)
        assert str(tmp_path / WEIGHTS) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    saved(tmp_path, tokenizer)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="rebuild the step"):
        load_weights(tmp_path)


class Attack:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(tokenizer: Tokenizer, tmp_path: Path, form: str) -> None:
    folder, attacked = tmp_path / "model", tmp_path / "attacked"
    saved(folder, tokenizer)
    if form == "pickle":
        (folder / WEIGHTS).write_bytes(pickle.dumps(Attack(attacked)))
    else:
        torch.save({"shared_embedding.weight": Attack(attacked)}, folder / WEIGHTS)
    with pytest.raises(UserError):
        load_model(folder)
    assert not attacked.exists()
    pickle.loads(pickle.dumps(Attack(attacked)))
    assert attacked.exists()  # it would have worked
