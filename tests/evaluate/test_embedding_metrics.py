"""MAUVE and SIM with a real, small model on disk; without one they say so and the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from openba.config import CONFIGS, ConfigError, load
from openba.evaluate.answers import Answers
from openba.evaluate.metrics import score_answers
from openba.evaluate.suite import select_benchmarks
from openba.recipes.evaluate import BenchmarkRecipe
from openba.report.paper_tables import evaluation_row, paper_tables

TEXTS = ["how do i learn python", "what is the best way to lose weight", "why is the sky blue"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights over the words of the texts, in transformers' form."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)
    torch.manual_seed(3)
    shape = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, initializer_range=1.0,
    )  # fmt: skip
    BertModel(shape).save_pretrained(folder)
    return folder


def answers(folder: Path, predictions: list[str]) -> Answers:
    return Answers(
        predictions,
        [[text] for text in TEXTS],
        "en",
        [""] * 3,
        prompts=TEXTS,
        model_folders={"sim": str(folder), "mauve": str(folder)},
    )


def test_an_answer_like_its_prompt_is_nearest_to_it(encoder: Path) -> None:
    same, other, empty = (
        score_answers(["sim"], answers(encoder, texts))
        for texts in (TEXTS, [*TEXTS[1:], TEXTS[0]], ["", "", ""])
    )
    assert same["sim"] == pytest.approx(100, abs=1e-3)
    assert float(other["sim"]) < 97
    assert empty["sim"] == 0
    assert other["sim_stderr"] != 0


def test_padding_does_not_change_an_embedding(encoder: Path) -> None:
    together = score_answers(["sim"], answers(encoder, ["why", TEXTS[1], "sky sky"]))
    alone = []
    for i, text in enumerate(["why", TEXTS[1], "sky sky"]):
        one = Answers([text], [[text]], "en", [""], prompts=[TEXTS[i]], model_folders={"sim": str(encoder)})
        alone.append(float(score_answers(["sim"], one)["sim"]))
    assert together["sim"] == pytest.approx(sum(alone) / 3, abs=1e-3)


def test_mauve_of_the_same_texts_is_its_best(encoder: Path) -> None:
    pytest.importorskip("mauve")  # under the GPL, and no dependency
    same = score_answers(["mauve"], answers(encoder, TEXTS))
    assert same["mauve"] == pytest.approx(100, abs=1)
    assert same["mauve_model"] == encoder.name


def test_without_a_model_they_are_not_run_and_the_others_are(tmp_path: Path) -> None:
    scores = score_answers(["bleu_2", "mauve", "sim"], answers(tmp_path / "none", TEXTS))
    assert scores["bleu_2"] == pytest.approx(100)
    for metric in ("mauve", "sim"):
        assert metric not in scores
        assert "no model of transformers' form there" in str(scores[f"{metric}_not_run"])
    row = evaluation_row("m", "qqp", {"method": "generate", "n": 3, "scores": scores})
    table = next(table for table in paper_tables([row]) if table["number"] == 10)
    ours = {line["head"]: line["ours"]["m"] for line in table["lines"]}
    assert ours["QQP B-2"]["score"] == pytest.approx(100)
    assert ours["QQP Mav"] is ours["QQP SIM"] is None


def test_the_declaration_names_the_models_and_data_moves_them(tmp_path: Path) -> None:
    moved = select_benchmarks([], ["qqp"], tmp_path)["qqp"]
    assert moved.models == {
        "mauve": str(tmp_path / "models" / "gpt2-large"),
        "sim": str(tmp_path / "models" / "all-MiniLM-L6-v2"),
    }
    file = CONFIGS / "benchmark" / "bbc-title.yaml"
    with pytest.raises(ConfigError, match="metric 'sim' compares by a model"):
        load(file, BenchmarkRecipe, ["metrics=[sim]"])
