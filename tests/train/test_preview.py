"""Preview: what is shown is what a training gets, masks where they are, figures that add up."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from openba.config import CONFIGS, load
from openba.errors import UserError
from openba.recipes.train import OptimRecipe, PrefixRecipe, TrainRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.preview import marked, preview

UL2 = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe).data


def recipe(data: UL2Recipe | PrefixRecipe) -> TrainRecipe:
    lengths = {"encoder_length": 70, "decoder_length": 60}
    optim = OptimRecipe(lr=1e-3)
    return TrainRecipe(data=data, batch=8, budget="10 steps", evaluate_every=5, optim=optim, **lengths)


def test_masked_spans_are_marked_on_both_sides(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.sentinel(0), tokenizer.sentinel(1)
    word = tokenizer.encode("market")
    encoder = [tokenizer.mode("R"), *word, first, *word, second, tokenizer.eos]
    labels = [first, *word, second, *word, tokenizer.eos]
    shown = tokenizer.show(word)
    assert marked(encoder, tokenizer) == f"<R>{shown}⟦<extra_id_0>⟧{shown}⟦<extra_id_1>⟧</s>"
    assert marked(labels, tokenizer) == f"⟦<extra_id_0>{shown}⟧⟦<extra_id_1>{shown}</s>⟧"


def test_samples_rebuild_their_text_and_figures_add_up(mixture_folder: Path, tokenizer: Tokenizer) -> None:
    data = UL2.model_copy(update={"length": 64})
    shown = preview(recipe(data), mixture_folder, "stage1", tokenizer, samples=5)
    assert len(shown["samples"]) == 5
    for sample in shown["samples"]:
        assert re.match(r"<[RSX]>", sample["encoder"])
        spans = re.findall(r"⟦<extra_id_(\d+)>", sample["labels"])
        assert spans == re.findall(r"⟦<extra_id_(\d+)>⟧", sample["encoder"])
        assert len(spans) >= 1
        assert sample["encoder_tokens"] + sample["label_tokens"] == 64 + 2 * len(spans) + 3
    encoder, decoder = shown["lengths"]["encoder"], shown["lengths"]["decoder"]
    assert sum(encoder["histogram"]) == sum(decoder["histogram"]) == shown["measured"] == 936
    assert encoder["longest"] <= 64
    assert 0.5 < encoder["fill"] < 1
    table = pq.read_table(mixture_folder / "stage1" / "documents.parquet")
    assert sum(shown["mixture"].values()) == 60_000 == np.sum(table["tokens"].to_numpy())
    assert set(shown["mixture"]) == {"reviews", "news", "code"}


def test_stage_two_shows_its_own_part_at_its_limit(mixture_folder: Path, tokenizer: Tokenizer) -> None:
    data = PrefixRecipe(objective="prefix", length=114)
    shown = preview(recipe(data), mixture_folder, "stage2", tokenizer, samples=1)
    assert shown["lengths"]["encoder"]["fill"] == pytest.approx(60 / 70)
    assert shown["lengths"]["decoder"]["longest"] == 59
    assert sum(shown["mixture"].values()) == 20_000


def test_the_command_says_what_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBA_HOME", str(tmp_path))
    missing = CliRunner().invoke(app, ["data", "preview", "stage2"])
    assert isinstance(missing.exception, UserError)
    assert re.fullmatch(
        r"mixture/\w+: not built yet; `openba run tiny --until mixture` builds it", str(missing.exception)
    )
    setting = ["--set", "mixture.seed=5"]
    missing = CliRunner().invoke(app, ["data", "preview", "stage2", "-p", "ablation", *setting])
    assert "`openba run ablation --until mixture --set mixture.seed=5` builds it" in str(missing.exception)
    wrong = CliRunner().invoke(app, ["data", "preview", "flan"])
    assert "flan: not a training" in str(wrong.exception)
