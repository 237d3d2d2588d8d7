"""Extraction of written answers: accuracy on labelled answers, and verdicts against lm-evaluation-harness.

The labelled answers are those of the tests; real solutions of exams stand beside them. The second figure runs
exported tasks of every method in lm-eval itself, with a model of random weights, and scores answers of known
content; without lm-eval or `../shared/data` it is left out with a message.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.figure import ROOT, Figure
from openba.evaluate import harness
from openba.evaluate.extraction import extract, option_letter
from openba.evaluate.harness import ExportedItem
from openba.evaluate.items import AnsweredItem
from openba.evaluate.run import extract_answers
from openba.evaluate.suite import run_suite, select_benchmarks
from openba.model.files import save_model
from openba.model.model import OpenBAModel
from openba.recipes.evaluate import BenchmarkRecipe, is_mean_of_items
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

SHARED_DATA = ROOT.parent / "shared" / "data"
LABELLED_FOLDER = ROOT / "tests" / "evaluate"
_ITEM_COUNT = 32
_EXPORTED_BENCHMARKS = {
    "mmlu": "eval_mmlu",
    "mmlu-5shot": "eval_mmlu",
    "mmlu-cot": "eval_mmlu",
    "cmmlu": "eval_cmmlu",
    "cmmlu-5shot": "eval_cmmlu",
    "cmmlu-cot": "eval_cmmlu",
    "ceval": "eval_ceval",
    "ceval-5shot": "eval_ceval",
    "ceval-cot": "eval_ceval",
    "belebele-en": "eval_belebele_en/eng_Latn.jsonl",
    "bbh": "eval_bbh/bbh/*.json",
    "superglue-boolq": "eval_superglue/BoolQ/val.jsonl",
    "superglue-cb": "eval_superglue/CB/val.jsonl",
    "superglue-copa": "eval_superglue/COPA/val.jsonl",
    "superglue-multirc": "eval_superglue/MultiRC/val.jsonl",
    "superglue-record": "eval_superglue/ReCoRD/train.jsonl",
    "ner-mit-movie": "ner_mit/movie_trivia10k13/*.jsonl",
    "flores-en-zh": "eval_flores_zh_en/dev.jsonl",
    "flores-zh-en": "eval_flores_zh_en/dev.jsonl",
    "clts": "eval_clts/samples.jsonl",
    "wikiauto": "eval_wikiauto_turk/valid.jsonl",
}
"""Benchmark -> its data below `../shared/data`."""
# A wide initialisation (init_std 1.0), so that a random model's answers depend on the question.
_MODEL_RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=256, init_std=1.0,
)  # fmt: skip
_ANSWER_FORMS = ("{}", "The answer is {}.", "So the answer is ({}).", "答案是{}。", "I do not know.", "")


def figures() -> Iterator[Figure]:
    """Yield the accuracy of the extraction, and the differences of verdicts."""
    yield from _extraction_figures()
    if not SHARED_DATA.exists() or not find_spec("lm_eval"):
        print("quality: no ../shared/data or no lm-eval: verdicts are not compared", file=sys.stderr)
        return
    yield from _verdict_figures()


def _extraction_figures() -> Iterator[Figure]:
    cases = [
        json.loads(line)
        for path in sorted(LABELLED_FOLDER.glob("extraction_*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    for description, selected_cases in (
        ("answers", [case for case in cases if case["right"]]),
        ("texts without an answer", [case for case in cases if not case["right"]]),
    ):
        correct_count = sum(
            extract(case["text"], case["form"], case.get("stop", ()), case.get("letters", ""))
            == case["right"]
            for case in selected_cases
        )
        figure_name = f"quality/extraction: {description} read right, of {len(selected_cases)}"
        yield Figure(figure_name, 100 * correct_count / len(selected_cases), "%", 98.0, "higher")
    yield Figure("quality/extraction: labelled cases", len(cases), "", 120, "higher")
    exam_file = SHARED_DATA / "flan_gaokao_zh" / "questions.jsonl"
    if exam_file.exists():
        rows = [json.loads(line) for line in exam_file.read_text(encoding="utf-8").splitlines()]
        # Questions with several right letters have no single verdict.
        single_answers = [row for row in rows if len("".join(row["answer"])) == 1]
        correct_count = sum(option_letter(row["analysis"]) == row["answer"][0] for row in single_answers)
        figure_name = (
            f"quality/extraction: letters of real exam solutions read right, of {len(single_answers)}"
        )
        yield Figure(figure_name, 100 * correct_count / len(single_answers), "%", 98.0, "higher")


def _verdict_figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        benchmarks: dict[str, BenchmarkRecipe] = {}
        for name, path in _EXPORTED_BENCHMARKS.items():
            overrides = [f"items={_ITEM_COUNT}", "max_new_tokens=8", f"task.source.path={SHARED_DATA / path}"]
            benchmarks |= select_benchmarks([], [name], None, overrides)
        task_files, _ = harness.export(root / "tasks", benchmarks)
        differing, compared = _compare_random_model(root, benchmarks, task_files)
        counts = f"{len(task_files)} tasks, {compared} items"
        yield Figure(f"quality/lm_eval: verdicts that differ, {counts}, random weights", differing, "", 0)
        differing, compared = _compare_known_answers(benchmarks, task_files)
        figure_name = f"quality/lm_eval: verdicts that differ, {compared} answers of known content"
        yield Figure(figure_name, differing, "", 0)


def _compare_random_model(
    root: Path, benchmarks: dict[str, BenchmarkRecipe], task_files: Sequence[Path]
) -> tuple[int, int]:
    """Return differing and compared verdicts of a random model's answers, here and in lm-eval."""
    from lm_eval import simple_evaluate

    torch.manual_seed(1)
    tokenizer = Tokenizer(SHARED_DATA / "tokenizer_mt5" / "spiece.model")
    model = OpenBAModel(_MODEL_RECIPE.architecture(tokenizer.size))
    save_model(root / "model", model.state_dict(), model.architecture, tokenizer)
    run_suite(root / "model", benchmarks, root / "out")
    harness_model = harness.register()(pretrained=str(root / "model"))
    # Not more than 0 bootstrap rounds: standard errors are not compared.
    results = simple_evaluate(
        model=harness_model, tasks=list(map(str, task_files)), log_samples=True, bootstrap_iters=0
    )
    differing = compared = 0
    for name, benchmark in benchmarks.items():
        rows = pq.read_table(root / "out" / f"{name}.parquet").to_pylist()
        items_by_id = {row["id"]: row for row in rows}
        for sample in results["samples"][f"openba_{name}"]:
            item = items_by_id[sample["doc"]["id"]]
            harness_value = sample[benchmark.metrics[0]]
            compared += 1
            if item["verdict"] is None:
                # The metric is no mean over items, so lm-eval aggregates outputs: equal outputs, equal score.
                differing += harness_value["output"] != item["output"]
            else:
                differing += abs(harness_value - item["verdict"]) > 1e-6
    return differing, compared


def _compare_known_answers(
    benchmarks: dict[str, BenchmarkRecipe], task_files: Sequence[Path]
) -> tuple[int, int]:
    """Return differing and compared verdicts of answers of known content, here and as lm-eval calls us."""
    from openba.evaluate import harness_model
    from openba.evaluate.metrics import score_items

    differing = compared = 0
    for task_file, benchmark in zip(task_files, benchmarks.values(), strict=True):
        metric = benchmark.metrics[0]
        if benchmark.method != "generate" or not is_mean_of_items(metric):
            continue
        lines = task_file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
        items: list[ExportedItem] = [json.loads(line) for line in lines]
        texts = [
            _ANSWER_FORMS[position % len(_ANSWER_FORMS)].format(item["target"])
            for position, item in enumerate(items)
        ]
        answered_items: list[AnsweredItem] = [
            {**item, "output": text, "attempts": [], "scores": []}  # type: ignore[typeddict-item]
            for item, text in zip(items, texts, strict=True)
        ]
        item_values = score_items([metric], extract_answers(benchmark, answered_items))[1][metric]
        for item, text, item_value in zip(items, texts, item_values, strict=True):
            compared += 1
            differing += harness_model.process_results(item, [text])[metric] != item_value
    return differing, compared
