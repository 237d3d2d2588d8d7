"""Written answers: how many labelled ones are read right, and verdicts here against lm-evaluation-harness.

The labelled answers are those of the tests; real solutions of exams stand beside them. The second figure runs
exported tasks of every method in lm-eval itself, with a model of random weights, and scores answers of known
content; without lm-eval or `../shared/data` it is left out, and that is said.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.figure import ROOT, Figure
from openba.evaluate import harness
from openba.evaluate.extraction import extract, option_letter
from openba.evaluate.run import read_answers
from openba.evaluate.suite import chosen, run_suite
from openba.model.files import save_model
from openba.model.model import OpenBAModel
from openba.recipes.evaluate import BenchmarkRecipe, is_mean_of_items
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

SHARED = ROOT.parent / "shared" / "data"
CASES = ROOT / "tests" / "evaluate"
_ITEMS = 32
_EXPORTED = {
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
_RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=256, init_std=1.0,  # wide: answers then hang on the question
)  # fmt: skip
_FORMS = ("{}", "The answer is {}.", "So the answer is ({}).", "答案是{}。", "I do not know.", "")


def figures() -> Iterator[Figure]:
    """Yield the accuracy of the extraction, and the differences of verdicts."""
    yield from _extraction()
    if not SHARED.exists() or not find_spec("lm_eval"):
        print("quality: no ../shared/data or no lm-eval: verdicts are not compared", file=sys.stderr)
        return
    yield from _verdicts()


def _extraction() -> Iterator[Figure]:
    cases = [
        json.loads(line)
        for path in sorted(CASES.glob("extraction_*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    for what, some in (
        ("answers", [case for case in cases if case["right"]]),
        ("texts without an answer", [case for case in cases if not case["right"]]),
    ):
        right = sum(
            extract(case["text"], case["form"], case.get("stop", ()), case.get("letters", ""))
            == case["right"]
            for case in some
        )
        name = f"quality/extraction: {what} read right, of {len(some)}"
        yield Figure(name, 100 * right / len(some), "%", 98.0, "higher")
    yield Figure("quality/extraction: labelled cases", len(cases), "", 120, "higher")
    questions = SHARED / "flan_gaokao_zh" / "questions.jsonl"
    if questions.exists():
        rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
        single = [row for row in rows if len("".join(row["answer"])) == 1]
        right = sum(option_letter(row["analysis"]) == row["answer"][0] for row in single)
        name = f"quality/extraction: letters of real exam solutions read right, of {len(single)}"
        yield Figure(name, 100 * right / len(single), "%", 98.0, "higher")


def _verdicts() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        benchmarks: dict[str, BenchmarkRecipe] = {}
        for name, path in _EXPORTED.items():
            overrides = [f"items={_ITEMS}", "max_new_tokens=8", f"task.source.path={SHARED / path}"]
            benchmarks |= chosen([], [name], None, overrides)
        files, _ = harness.export(root / "tasks", benchmarks)
        differing, compared = _by_random_weights(root, benchmarks, files)
        name = f"quality/lm_eval: verdicts that differ, {len(files)} tasks, {compared} items, random weights"
        yield Figure(name, differing, "", 0)
        differing, compared = _by_known_answers(benchmarks, files)
        name = f"quality/lm_eval: verdicts that differ, {compared} answers of known content"
        yield Figure(name, differing, "", 0)


def _by_random_weights(
    root: Path, benchmarks: dict[str, BenchmarkRecipe], files: Sequence[Path]
) -> tuple[int, int]:
    from lm_eval import simple_evaluate

    torch.manual_seed(1)
    tokenizer = Tokenizer(SHARED / "tokenizer_mt5" / "spiece.model")
    model = OpenBAModel(_RECIPE.architecture(tokenizer.size))
    save_model(root / "model", model.state_dict(), model.architecture, tokenizer)
    run_suite(root / "model", benchmarks, root / "out")
    lm = harness.register()(pretrained=str(root / "model"))
    results = simple_evaluate(model=lm, tasks=list(map(str, files)), log_samples=True, bootstrap_iters=0)
    differing = compared = 0
    for name, benchmark in benchmarks.items():
        rows = {row["id"]: row for row in pq.read_table(root / "out" / f"{name}.parquet").to_pylist()}
        for sample in results["samples"][f"openba_{name}"]:
            row, value = rows[sample["doc"]["id"]], sample[benchmark.metrics[0]]
            compared += 1
            if row["verdict"] is None:  # the metric is none of items: the same text gives the same score
                differing += value["output"] != row["output"]
            else:
                differing += abs(value - row["verdict"]) > 1e-6
    return differing, compared


def _by_known_answers(benchmarks: dict[str, BenchmarkRecipe], files: Sequence[Path]) -> tuple[int, int]:
    from openba.evaluate import harness_model
    from openba.evaluate.metrics import score_items

    differing = compared = 0
    for file, benchmark in zip(files, benchmarks.values(), strict=True):
        metric = benchmark.metrics[0]
        if benchmark.method != "generate" or not is_mean_of_items(metric):
            continue
        lines = file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
        items: list[dict[str, Any]] = [json.loads(line) for line in lines]
        texts = [_FORMS[i % len(_FORMS)].format(item["target"]) for i, item in enumerate(items)]
        answered = [
            {**item, "output": text, "attempts": [], "scores": []}
            for item, text in zip(items, texts, strict=True)
        ]
        native = score_items([metric], read_answers(benchmark, answered))[1][metric]
        for item, text, value in zip(items, texts, native, strict=True):
            compared += 1
            differing += harness_model.process_results(item, [text])[metric] != value
    return differing, compared
