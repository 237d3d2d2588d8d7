"""A metric of a user's file beside the benchmark's YAML."""

from pathlib import Path
from typing import Any

import pytest

from openba.config import CONFIGS, Config
from openba.errors import UserError
from openba.evaluate.metrics import score_items
from openba.evaluate.run import extract_answers, score_benchmark
from openba.evaluate.suite import select_benchmarks
from openba.graph import Pipeline
from openba.recipes.evaluate import BenchmarkRecipe

OVERLAP = '''
def score(answers):
    """Share of the right answer's words that the prediction has."""
    def share(prediction, references):
        right = set(references[0].split())
        return len(right & set(prediction.split())) / len(right)
    return [share(*each) for each in zip(answers.predictions, answers.references)]

def half(answers):
    return [0.5]

def broken(answers):
    return [1 / 0 for _ in answers.predictions]

def percent(answers):
    return [50.0 for _ in answers.predictions]
'''


def judge(file: Path) -> Any:
    return score_benchmark(Config.read(file).validate(BenchmarkRecipe), items(), 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "overlap.py").write_text(OVERLAP)
    path = tmp_path / "benchmark" / "titles.yaml"
    path.write_text(f"extends: {CONFIGS}/benchmark/bbc-title\nmetrics: [rouge_l, overlap:score]\n")
    return path


def items() -> list[dict[str, Any]]:
    base = {"choices": [], "category": "", "attempts": None, "input": "x", "target": "y", "id": "1"}
    rows = [("Shares fall sharply", "Shares fall sharply"), ("Shares rise", "Shares fall"), ("none", "a b")]
    return [{**base, "output": output, "references": [right]} for output, right in rows]


def test_a_metric_beside_its_yaml_scores_items_like_one_of_the_package(file: Path) -> None:
    benchmark = Config.read(file).validate(BenchmarkRecipe)
    assert benchmark.metrics == ("rouge_l", "overlap:score")
    scores, values = score_items(benchmark.metrics, extract_answers(benchmark, items()))
    assert values["overlap:score"] == [1.0, 0.5, 0.0]
    assert scores["overlap:score"] == 50.0
    assert scores["overlap:score_stderr"] == pytest.approx(28.87, abs=0.01)
    again = BenchmarkRecipe.model_validate_json(benchmark.model_dump_json())
    assert again == benchmark, "a job gets the text with the recipe"


def test_the_metrics_text_is_part_of_the_fingerprint(file: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline" / "mine.yaml"
    pipeline.parent.mkdir()
    pipeline.write_text("extends: tiny\nname: mine\nbenchmarks: [titles]\nevaluate: [stage3]\n")
    before = Pipeline(pipeline).step("evaluate-stage3")
    (file.parent / "overlap.py").write_text(OVERLAP.replace("/ len(right)", "/ max(1, len(right))"))
    after = Pipeline(pipeline).step("evaluate-stage3")
    assert before.fingerprint != after.fingerprint
    assert before.inputs["model"].fingerprint == after.inputs["model"].fingerprint


def test_a_benchmark_file_with_its_metric_is_chosen_by_path(file: Path) -> None:
    benchmark = select_benchmarks([], [str(file)], overrides=["items=5"])["titles"]
    assert benchmark.items == 5
    assert list(benchmark.own_metrics) == ["overlap:score"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("overlap:half", r"metric overlap:half: returned 1 values for 3 items"),
        ("overlap:broken", r"metric overlap:broken: ZeroDivisionError: division by zero"),
        ("overlap:percent", r"metric overlap:percent: returned 50.0; give each item a number from 0 to 1"),
        ("overlap:nothing", r"metric overlap:nothing: AttributeError: .*no attribute 'nothing'"),
        ("elsewhere:score", r"titles.yaml: metrics: elsewhere:score: cannot read .*elsewhere.py"),
        ("rouge_ll", r"metrics: no metric 'rouge_ll' \(did you mean 'rouge_l'\?\)"),
    ],
)
def test_a_wrong_metric_is_refused_in_a_line(file: Path, metric: str, message: str) -> None:
    file.write_text(f"extends: {CONFIGS}/benchmark/bbc-title\nmetrics: ['{metric}']\n")
    with pytest.raises(UserError, match=message) as error:
        judge(file)
    assert "\n" not in str(error.value)
