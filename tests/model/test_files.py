"""A model on disk: the same model comes back, damage is told in one line, nothing is unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.files import WEIGHTS, load_model, load_weights, save_model
from openba.model.model import OpenBAModel
from openba.model.pieces_openba import MODEL_FILE
from openba.recipes.model import ModelRecipe

RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    norm="layernorm", attention_bias=True, head_bias=True, tie_embeddings=False, dropout=0.1,
)  # fmt: skip


def logits(model: OpenBAModel) -> torch.Tensor:
    ids = torch.arange(3, 15)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        return model.logits(model.decode(ids, model.memory(model.encode(ids, mask)), mask)[0])


def saved(
    folder: Path, tokenizer_folder: Path, recipe: ModelRecipe = RECIPE, dtype: torch.dtype = torch.float32
) -> OpenBAModel:
    torch.manual_seed(0)
    model = OpenBAModel(recipe, 4224, max_length=48).to(dtype).eval()
    save_model(folder, model.state_dict(), model, tokenizer_folder)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_bit_by_bit(
    tokenizer_folder: Path, tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    recipe = RECIPE.model_copy(update={"tie_embeddings": tied})
    model = saved(tmp_path / "model", tokenizer_folder, recipe, dtype)
    loaded, tokenizer = load_model(tmp_path / "model")
    assert loaded.recipe == recipe
    assert (loaded.vocab, loaded.max_length, loaded.training) == (4224, 48, False)
    assert loaded.embedding.weight.dtype == dtype
    assert torch.equal(logits(loaded), logits(model))
    assert tokenizer.encode("x = 1") == Tokenizer.load(tokenizer_folder).encode("x = 1")


def test_weights_that_share_one_buffer_are_saved_each(tokenizer_folder: Path, tmp_path: Path) -> None:
    # As DeepSpeed holds them: every parameter a view into one flat tensor.
    model = saved(tmp_path / "plain", tokenizer_folder)
    state = model.state_dict()
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    views = {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}
    save_model(tmp_path / "views", views, model, tokenizer_folder)
    assert (tmp_path / "views" / WEIGHTS).read_bytes() == (tmp_path / "plain" / WEIGHTS).read_bytes()


def test_the_folder_holds_nothing_else(tokenizer_folder: Path, tmp_path: Path) -> None:
    saved(tmp_path, tokenizer_folder)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", WEIGHTS, MODEL_FILE}


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_a_truncated_file_is_one_line(tokenizer_folder: Path, tmp_path: Path, keep: int) -> None:
    saved(tmp_path, tokenizer_folder)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:keep])
    for load in (load_weights, load_model):
        with pytest.raises(UserError) as error:
            load(tmp_path)
        assert str(tmp_path / WEIGHTS) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tokenizer_folder: Path, tmp_path: Path) -> None:
    saved(tmp_path, tokenizer_folder)
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
def test_a_pickle_is_refused_and_not_run(tokenizer_folder: Path, tmp_path: Path, form: str) -> None:
    folder, attacked = tmp_path / "model", tmp_path / "attacked"
    saved(folder, tokenizer_folder)
    if form == "pickle":
        (folder / WEIGHTS).write_bytes(pickle.dumps(Attack(attacked)))
    else:
        torch.save({"embedding.weight": Attack(attacked)}, folder / WEIGHTS)
    with pytest.raises(UserError):
        load_model(folder)
    assert not attacked.exists()
    pickle.loads(pickle.dumps(Attack(attacked)))
    assert attacked.exists()  # it would have worked
