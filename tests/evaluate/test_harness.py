"""What lm-eval asks of a model, and benchmarks as its tasks; lm-eval itself is not needed."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from openba.data.instruct import encode_input
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.evaluate import harness
from openba.evaluate.suite import chosen
from openba.model.files import save_model
from openba.model.generate import continuation_losses, generate_ids, start_tokens
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe

torch.set_num_threads(1)

RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=96, init_std=0.3,
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
        (_, right), (_, wrong) = harness.scores(scorer.model, [source] * 2, [ids, others], scorer.start)
        assert right
        assert not wrong


def test_texts_end_where_they_are_told_to(scorer: harness.Scorer) -> None:
    assert len(scorer.texts(PROMPTS, 5)) == 3
    assert harness._until("one\ntwo Q: three", ["Q:", "\n"]) == "one"
    assert harness._until("one", ["", "x"]) == "one"


class _TaskLoader(yaml.SafeLoader):
    """Reads lm-eval's `!function` as the name that it is."""


def _name(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_TaskLoader.add_constructor("!function", _name)


def test_a_benchmark_becomes_a_task_of_its_form(shared: Path, tmp_path: Path) -> None:
    paths = {"mmlu": "eval_mmlu/*.jsonl", "flores-en-zh": "eval_flores_zh_en/dev.jsonl"}
    for name, path in paths.items():
        benchmarks = chosen([], [name], None, ["items=30", f"task.source.path={shared / 'data' / path}"])
        (file,) = harness.export(tmp_path, benchmarks)
        task = yaml.load(file.read_text(encoding="utf-8"), _TaskLoader)
        assert task["doc_to_text"] == harness.PROMPT
        lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines]
        assert len(items) == 30
        assert task["task"] == f"openba_{name}"
        if name == "mmlu":
            assert task["output_type"] == "multiple_choice"
            assert all(item["choices"][item["gold"]] == item["target"] for item in items)
        else:
            assert task["output_type"] == "generate_until"
            assert [row["metric"] for row in task["metric_list"]] == ["bleu", "chrf"]


def test_without_lm_eval_it_is_said_how_to_get_it() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install lm-eval accelerate"):
            harness.register()
    else:
        assert harness.register() is harness.OpenBA


def test_what_a_task_names_brings_the_model() -> None:
    module, _, function = harness.PROMPT.rpartition(".")
    if find_spec("lm_eval"):
        assert getattr(import_module(module), function)({"input": PROMPTS[0]}) == PROMPTS[0]
    else:
        with pytest.raises(UserError, match="lm-eval is not installed"):
            import_module(module)
