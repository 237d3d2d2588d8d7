"""The model card: scores as they are, nothing for what was not run, metadata that Hugging Face reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from openba.report.card import model_card, write_card

RESULTS = {
    "mmlu": {
        "method": "letters", "version": 1, "licence": "MIT", "n": 50,
        "scores": {"n": 50, "accuracy": 31.5, "accuracy_stderr": 6.25},
    },
    "flores-en-zh": {
        "method": "generate", "version": 2, "licence": "CC BY-SA 4.0", "n": 9,
        "scores": {"n": 9, "bleu": 12.0, "bleu_stderr": 1.0, "bleu_signature": "tok:zh", "chrf": 20.0},
    },
    "clts": {"error": "no such file"},
}  # fmt: skip


def test_the_card_is_read_back_by_the_hub_library() -> None:
    card = ModelCard(model_card("kite", RESULTS))
    found = {(row.dataset_type, row.metric_type): row.metric_value for row in card.data.eval_results}
    assert found == {
        ("mmlu", "accuracy"): 31.5,
        ("flores-en-zh", "bleu"): 12.0,
        ("flores-en-zh", "chrf"): 20.0,
    }
    assert "| mmlu | letters | accuracy | 31.50 ± 6.25 | 50 | MIT |" in card.text
    assert "clts" not in card.content


def test_a_file_a_benchmark_and_none_for_what_was_not_run(tmp_path: Path) -> None:
    files = write_card(tmp_path, "kite", RESULTS)
    assert sorted(path.name for path in files) == ["README.md", "flores-en-zh.yaml", "mmlu.yaml"]
    (entry,) = yaml.safe_load((tmp_path / ".eval_results" / "mmlu.yaml").read_text(encoding="utf-8"))
    assert entry["value"] == 31.5
    assert entry["notes"] == "method letters, version 1, n=50, standard error 6.25"


@pytest.mark.parametrize("results", [{}, {"clts": {"error": "x"}}])
def test_without_results_it_says_so(results: dict[str, dict[str, str]]) -> None:
    assert "Not run." in model_card("kite", results)
