"""The model that a command is given: a folder, or a trained step of a pipeline, as the store has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openba.artifacts import Build, Step, Store, materialize
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.home import Home
from openba.model.files import save_model
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer
from tasks.models import open_model
from tests.flows.test_cli import one_line, openba

SHAPE = ModelRecipe(d_model=32, num_heads=2, kv_channels=16, ffn=96, encoder_layers=1, decoder_layers=2)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Store:
    """A store in which stage1 of `tiny` has the weights of a small random model."""
    monkeypatch.setenv("OPENBA_HOME", str(tmp_path / "home"))
    store = Home.from_environment().store
    torch.manual_seed(5)
    model = OpenBAModel(SHAPE.architecture(tokenizer.size))

    def write(step: Step, build: Build) -> None:
        if step.name == "stage1":
            save_model(build.out / "model", model.state_dict(), model.architecture, tokenizer)

    for step in Pipeline(find_pipeline("tiny")).step("stage1").walk():
        materialize(step, store, run_step=write)
    return store


def test_a_trained_step_is_found_by_its_name_and_its_weights_are_checked(store: Store) -> None:
    step = Pipeline(find_pipeline("tiny")).step("stage1")
    with open_model("stage1", "tiny") as (name, folder):
        assert (name, folder) == ("stage1", store.path(step) / "model")
        assert load_model(folder)[0].architecture.num_decoder_layers == 2
    with pytest.raises(UserError, match="stage2: not built"), open_model("stage2", "tiny"):
        pass
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"damaged|not built"), open_model("stage1", "tiny"):
        pass


def test_a_name_that_is_neither_folder_nor_training_is_refused(store: Store) -> None:
    for name in ("clean", "stage9"):
        with (
            pytest.raises(UserError, match=rf"{name}: no such folder, and no training of tiny \(stage1, "),
            open_model(name, "tiny"),
        ):
            pass


def test_commands_take_the_name_of_a_trained_step(store: Store, tmp_path: Path) -> None:
    home = Path(store.root).parent
    step = Pipeline(find_pipeline("tiny")).step("stage1")
    assert f"  model: {store.path(step)}/model\n" in openba(home, "show", "stage1").stdout
    assert "(not built)" in openba(home, "show", "stage2").stdout
    exported = openba(home, "export", "stage1", str(tmp_path / "copy"), "--format", "safetensors")
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["num_decoder_layers"] == 2
    assert "stage9: no such folder" in one_line(openba(home, "eval", "stage9", "bbc-topic"))
