"""What lm-eval asks of a model, and benchmarks as its tasks; lm-eval itself is not needed."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.evaluate import harness
from openba.evaluate.run import score_benchmark
from openba.evaluate.suite import run_suite, select_benchmarks
from openba.model.files import save_model
from openba.model.generate import continuation_losses, generate_ids, start_tokens
from openba.model.model import OpenBAModel
from openba.recipes.evaluate import MEANS_OF_ITEMS, BenchmarkRecipe
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

torch.set_num_threads(1)

RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=96, init_std=1.0,
)  # fmt: skip
PROMPTS = ["今天天气很好，", "The Bank of England", "一"]


@pytest.fixture(scope="module")
def scorer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> harness.Scorer:
    torch.manual_seed(1)
    model = OpenBAModel(RECIPE.architecture(tokenizer.size))
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, model.state_dict(), model.architecture, tokenizer)
    return harness.Scorer(str(folder))


def test_lm_evals_plugins_have_our_model() -> None:
    (plugin,) = entry_points(group="lm_eval.models", name="openba")
    if find_spec("lm_eval"):
        assert plugin.load().__name__ == "OpenBA"
    else:
        with pytest.raises(UserError, match="lm-eval is not installed"):
            plugin.load()


def test_likelihoods_are_the_models_in_the_order_asked(scorer: harness.Scorer) -> None:
    endings = ["A", "B", "很好。", "很好，我们走吧", "said on Tuesday"]
    pairs = [(prompt, ending) for ending in endings for prompt in PROMPTS]
    found = scorer.loglikelihood(pairs)
    tokenizer, model = scorer.tokenizer, scorer.model
    for (prompt, ending), (told, _) in zip(pairs, found, strict=True):
        source = encode_input(tokenizer, prompt, (), 96)
        (losses,) = continuation_losses(model, [source], [tokenizer.encode(ending)], start_tokens(tokenizer))
        assert told == pytest.approx(-sum(losses), abs=1e-3)


def test_greedy_is_said_of_what_greedy_decoding_writes(scorer: harness.Scorer) -> None:
    tokenizer = scorer.tokenizer
    sources = [encode_input(tokenizer, prompt, (), 96) for prompt in PROMPTS]
    written = generate_ids(scorer.model, tokenizer, sources, 4)
    for source, ids in zip(sources, written, strict=True):
        others = [*ids[:-1], (ids[-1] + 1) % tokenizer.size]
        (_, right), (_, wrong) = harness.score_continuations(
            scorer.model, [source] * 2, [ids, others], scorer.decoder_start
        )
        assert right
        assert not wrong


def test_texts_end_where_they_are_told_to(scorer: harness.Scorer) -> None:
    assert len(scorer.generate(PROMPTS, 5)) == 3
    assert harness.cut_at_stop("one\ntwo Q: three", ["Q:", "\n"]) == "one"
    assert harness.cut_at_stop("one", ["", "x"]) == "one"


class _TaskLoader(yaml.SafeLoader):
    """Reads lm-eval's `!function` as the name that it is."""


def _name(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_TaskLoader.add_constructor("!function", _name)

EXPORTED = {
    "mmlu": ("eval_mmlu", "letters"),
    "cmmlu-5shot": ("eval_cmmlu", "letters, an answer prefix and examples that do not all fit"),
    "ceval": ("eval_ceval", "an average over categories"),
    "superglue-copa": ("eval_superglue/COPA/val.jsonl", "choices"),
    "superglue-multirc": ("eval_superglue/MultiRC/val.jsonl", "F1 and whole questions"),
    "mmlu-cot": ("eval_mmlu", "a letter read out of text"),
    "bbh": ("eval_bbh/bbh/*.json", "a short answer and an average"),
    "superglue-record": ("eval_superglue/ReCoRD/train.jsonl", "several right answers"),
    "ner-mit-movie": ("ner_mit/movie_trivia10k13/*.jsonl", "entities"),
    "flores-en-zh": ("eval_flores_zh_en/dev.jsonl", "BLEU"),
}


def recipes(shared: Path) -> dict[str, BenchmarkRecipe]:
    found: dict[str, BenchmarkRecipe] = {}
    for name, (path, _) in EXPORTED.items():
        source = f"task.source.path={shared / 'data' / path}"
        found |= select_benchmarks([], [name], None, ["items=16", "max_new_tokens=6", source])
    return found


def test_a_benchmark_becomes_a_task_of_its_form(shared: Path, tmp_path: Path) -> None:
    files, refused = harness.export(tmp_path, recipes(shared))
    assert not refused
    for name, file in zip(EXPORTED, files, strict=True):
        task = yaml.load(file.read_text(encoding="utf-8"), _TaskLoader)
        assert task["doc_to_text"] == harness.PROMPT_FUNCTION
        lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines]
        assert len(items) == 16
        assert task["task"] == f"openba_{name}"
        if task["output_type"] == "multiple_choice":
            assert all(item["choices"][item["gold"]] == item["target"] for item in items)
    assert [row["metric"] for row in task["metric_list"]] == ["bleu", "chrf"]


def test_what_a_task_cannot_say_is_refused_by_name_and_the_rest_exported(
    shared: Path, tmp_path: Path
) -> None:
    path = f"task.source.path={shared / 'data' / 'eval_qqp' / 'valid.jsonl'}"
    asked = select_benchmarks([], ["belebele-zh-hans"], tmp_path)  # no data there
    asked |= select_benchmarks([], ["qqp"], None, [path, "items=4"])
    humaneval = select_benchmarks([], ["humaneval"])["humaneval"]
    asked["humaneval"] = humaneval.model_copy(update={"attempts": 20})
    files, refused = harness.export(tmp_path / "tasks", asked)
    assert [file.name for file in files] == ["openba_qqp.yaml"]
    assert set(refused) == {"belebele-zh-hans", "humaneval", "qqp: mauve", "qqp: sim"}
    assert "no such file" in refused["belebele-zh-hans"]
    assert "lm-eval asks once" in refused["humaneval"]


@pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-eval is not installed")
@pytest.mark.timeout(900)
def test_lm_eval_gives_the_native_verdicts(
    scorer: harness.Scorer, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate

    benchmarks = recipes(shared)
    files, _ = harness.export(tmp_path / "tasks", benchmarks)
    folder = scorer.folder
    native = run_suite(folder, benchmarks, tmp_path / "out")
    tasks = [str(file) for file in files]
    lm = harness.register()(pretrained=str(folder))
    theirs = simple_evaluate(model=lm, tasks=tasks, log_samples=True, bootstrap_iters=0)
    for name, benchmark in benchmarks.items():
        rows = {row["id"]: row for row in pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()}
        samples = theirs["samples"][f"openba_{name}"]
        first = benchmark.metrics[0]
        assert len(samples) == len(rows) == 16
        for sample in samples:
            row = rows[sample["doc"]["id"]]
            if row["verdict"] is None:
                assert sample[first]["output"] == row["output"]
            else:
                assert sample[first] == pytest.approx(row["verdict"]), name
        scores = theirs["results"][f"openba_{name}"]
        for metric in (*benchmark.metrics, *(["average"] if benchmark.average == "category" else [])):
            factor = 100 if metric in MEANS_OF_ITEMS or metric == "average" else 1
            assert factor * scores[f"{metric},none"] == pytest.approx(
                native[name]["scores"][metric], abs=0.01
            )


@pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-eval is not installed")
def test_answers_right_and_wrong_get_the_same_verdict_in_both(shared: Path, tmp_path: Path) -> None:
    """What a model of random weights cannot show: answers in many forms, half of them right."""
    from openba.evaluate import harness_model

    forms = ["{}", "The answer is {}.", "So the answer is ({}).", "I do not know. {}\nQuestion: no", ""]
    benchmarks = {name: one for name, one in recipes(shared).items() if one.method == "generate"}
    files, _ = harness.export(tmp_path, benchmarks)
    for file, (name, benchmark) in zip(files, benchmarks.items(), strict=True):
        lines = file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines]
        outputs = [forms[i % len(forms)].format(item["target"]) for i, item in enumerate(items)]
        common = {"scores": [], "attempts": [], "examples_left_out": 0, "cut": False, "unfinished": False}
        answered = [{**item, **common, "output": text} for item, text in zip(items, outputs, strict=True)]
        scores = score_benchmark(benchmark, answered, 0)["scores"]
        verdicts = [
            harness_model.process_results(item, [text]) for item, text in zip(items, outputs, strict=True)
        ]
        for metric in benchmark.metrics:
            found = [verdict[metric] for verdict in verdicts]
            if metric in MEANS_OF_ITEMS:
                assert 100 * sum(found) / len(found) == pytest.approx(scores[metric], abs=1e-3)
                assert 0 < sum(found) < len(found), name
            else:
                aggregate = getattr(harness_model, f"aggregate_{metric}")
                assert aggregate(found) == pytest.approx(scores[metric], abs=1e-3)


def test_without_lm_eval_it_is_said_how_to_get_it() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install lm-eval accelerate"):
            harness.register()
    else:
        assert harness.register() is harness.OpenBA


def test_what_a_task_names_brings_the_model() -> None:
    module, _, function = harness.PROMPT_FUNCTION.rpartition(".")
    if find_spec("lm_eval"):
        assert getattr(import_module(module), function)({"input": PROMPTS[0]}) == PROMPTS[0]
    else:
        with pytest.raises(UserError, match="lm-eval is not installed"):
            import_module(module)
