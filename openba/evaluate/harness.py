"""lm-evaluation-harness: our models there, and our benchmarks as its tasks.

Owns the model class that its `--model openba` means, and the export of a benchmark's items as a task of
its own YAML form. lm-eval is no dependency of this package; it is imported when it is asked for:

    python -m openba.evaluate.harness export tasks mmlu cmmlu --data data/eval
    lm_eval --model openba --model_args pretrained=FOLDER --include_path tasks --tasks tasks/openba_mmlu.yaml
    python -m openba.evaluate.harness run --model openba ... --tasks arc_easy      (lm_eval's own tasks)
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml

from openba.artifacts import Build
from openba.data import tasks
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.model.decoding import Session, pad
from openba.model.files import load_model
from openba.model.generate import generate, start_tokens
from openba.model.seq2seq import Seq2Seq
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe

BATCH = 64
"""Continuations scored together; those of one prompt share its encoding."""
_METRICS = {"bleu": "bleu", "chrf": "chrf", "exact_match": "exact_match", "accuracy": "exact_match"}
"""Metrics of ours that lm-eval has."""
PROMPT = "openba.evaluate.harness_model.prompt"
"""Imported by lm-eval 0.4.13 before it looks for the model, which is then there."""


class Scorer:
    """What lm-eval asks of a model, without lm-eval: log-likelihoods and texts; prompts as released."""

    def __init__(self, folder: str, answer_prefix: str = "") -> None:
        self.model, self.tokenizer = load_model(Path(folder))
        if torch.cuda.is_available():
            self.model = self.model.cuda()
        self.length = self.model.architecture.max_seq_length
        self.start = [*start_tokens(self.tokenizer), *self.tokenizer.encode(answer_prefix)]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of (prompt, continuation): sum of log-probabilities in nats, and whether greedy decoding agrees."""
        sources = {prompt: encode_input(self.tokenizer, prompt, (), self.length) for prompt, _ in pairs}
        # By length of prompt, the continuations of one prompt side by side.
        order = sorted(range(len(pairs)), key=lambda i: (len(sources[pairs[i][0]]), pairs[i][0]))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            targets = [self.tokenizer.encode(pairs[i][1]) or [self.tokenizer.eos] for i in chosen]
            scored = scores(self.model, [sources[pairs[i][0]] for i in chosen], targets, self.start)
            for i, score in zip(chosen, scored, strict=True):
                found[i] = score
        return found

    def texts(self, prompts: Sequence[str], limit: int) -> list[str]:
        """Greedy answers of at most `limit` tokens."""
        sources = [encode_input(self.tokenizer, prompt, (), self.length) for prompt in prompts]
        return generate(self.model, self.tokenizer, sources, limit)


@torch.inference_mode()
def scores(
    model: Seq2Seq, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], start: Sequence[int]
) -> list[tuple[float, bool]]:
    """Sum of log-probabilities of each target after `start`, and whether each of its tokens is the likeliest.

    Targets of one source that differ in their last token only, as letters do, are one row of the decoder.
    """
    distinct: dict[tuple[int, ...], int] = {}
    which: list[int] = []  # of each row of the decoder, its source
    rows: dict[tuple[int, tuple[int, ...]], int] = {}
    place = []
    for source, target in zip(sources, targets, strict=True):
        number = distinct.setdefault(tuple(source), len(distinct))
        if (key := (number, tuple(target[:-1]))) not in rows:
            rows[key] = len(which)
            which.append(number)
        place.append(rows[key])
    device = model.shared_embedding.weight.device
    ids, _ = pad([[*start, *target] for _, target in rows], device)
    session = Session(model, list(distinct), ids.shape[1])
    if which != list(range(len(distinct))):
        session.attention.keep(torch.tensor(which, device=device))
    hidden = session.advance(ids)[:, len(start) - 1 :]
    labels, real = pad(targets, device)
    told = torch.zeros(labels.shape, device=device)
    right = torch.ones(labels.shape, dtype=torch.bool, device=device)
    pair, position = real.nonzero(as_tuple=True)
    row = torch.tensor(place, device=device)[pair]
    needed, back = torch.unique(row * hidden.shape[1] + position, return_inverse=True)
    logits = model.logits(hidden.flatten(0, 1)[needed]).float()
    told[real] = logits.log_softmax(-1)[back, labels[real]]
    right[real] = logits.argmax(-1)[back] == labels[real]
    return list(zip(told.sum(1).tolist(), right.all(1).tolist(), strict=True))


@cache
def register() -> Any:
    """Make `openba` a model of lm-eval; returns its class, the same however often it is called.

    Raises:
        UserError: lm-eval is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401 - its own models are registered first
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise UserError("lm-eval is not installed; pip install lm-eval accelerate") from None

    @register_model("openba")
    class OpenBA(LM):  # type: ignore[misc, unused-ignore]
        def __init__(self, pretrained: str, answer_prefix: str = "", **ignored: Any) -> None:
            super().__init__()
            del ignored  # batch_size, device and the like, which lm-eval passes to every model
            self.scorer = Scorer(pretrained, answer_prefix)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return self.scorer.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            pairs = [("", request.args[0]) for request in requests]
            return [score for score, _ in self.scorer.loglikelihood(pairs)]

        def generate_until(self, requests: list[Any]) -> list[str]:
            limit = max(int(r.args[1].get("max_gen_toks", 256)) for r in requests)
            texts = self.scorer.texts([request.args[0] for request in requests], limit)
            ends = [request.args[1].get("until", []) for request in requests]
            return [_until(text, stops) for text, stops in zip(texts, ends, strict=True)]

    return OpenBA


def __getattr__(name: str) -> Any:
    """`OpenBA`, which the entry point names for lm-eval's plugins (its main branch since August 2026)."""
    if name == "OpenBA":
        return register()
    raise AttributeError(name)


def export(out: Path, benchmarks: dict[str, BenchmarkRecipe]) -> list[Path]:
    """Write each benchmark as `openba_NAME.yaml`, its items as JSON lines beside it; returns the YAML files.

    Raises:
        UserError: the data are not there, or a task has no item.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, benchmark in benchmarks.items():
        with tempfile.TemporaryDirectory() as folder:
            tasks.build(Build(Path(folder), TaskStep(name=name, task=benchmark.task), {}))
            rows = pq.read_table(Path(folder) / "heldout.parquet").slice(0, benchmark.items).to_pylist()
        items = out / f"openba_{name}.jsonl"
        lines = [json.dumps(_item(row), ensure_ascii=False) + "\n" for row in rows]
        items.write_text("".join(lines), encoding="utf-8")
        file = out / f"openba_{name}.yaml"
        task = yaml.safe_dump(_task(name, benchmark, items), allow_unicode=True)
        file.write_text(f"{task}doc_to_text: !function {PROMPT}\n", encoding="utf-8")
        written.append(file)
    return written


def _item(row: dict[str, Any]) -> dict[str, Any]:
    gold = row["choices"].index(row["target"]) if row["target"] in row["choices"] else -1
    return {key: row[key] for key in ("id", "category", "input", "target", "choices")} | {"gold": gold}


def _task(name: str, benchmark: BenchmarkRecipe, items: Path) -> dict[str, Any]:
    task: dict[str, Any] = {
        "task": f"openba_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items.resolve())}},
        "test_split": "test",
        "metadata": {"version": benchmark.version},
    }
    if benchmark.method == "generate":
        kept = [_METRICS[metric] for metric in benchmark.metrics if metric in _METRICS]
        return task | {
            "output_type": "generate_until",
            "doc_to_target": "{{target}}",
            "generation_kwargs": {"until": ["</s>"], "max_gen_toks": benchmark.max_new_tokens},
            "metric_list": [{"metric": metric} for metric in dict.fromkeys(kept or ["exact_match"])],
        }
    return task | {
        "output_type": "multiple_choice",
        "doc_to_target": "gold",
        "doc_to_choice": "{{choices}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


def _until(text: str, ends: Sequence[str] | str) -> str:
    for end in [ends] if isinstance(ends, str) else ends:
        text = text.partition(end)[0] if end else text
    return text


def main(arguments: list[str]) -> None:
    """`export DIR NAME... [--data DIR] [--set KEY=VALUE]...`, or `run` and lm-eval's own arguments."""
    import argparse

    from openba.evaluate.suite import chosen

    if arguments[:1] == ["run"]:
        register()
        from lm_eval.__main__ import cli_evaluate

        sys.argv = ["lm_eval", *arguments[1:]]
        cli_evaluate()
        return
    parser = argparse.ArgumentParser(prog="python -m openba.evaluate.harness", description=main.__doc__)
    parser.add_argument("command", choices=["export"])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args(arguments)
    for file in export(given.out, chosen([], given.names, given.data, given.set)):
        print(file)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"openba: {error}")
