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
from collections.abc import Callable, Iterator, Sequence
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
from openba.evaluate.shards import answered, batches
from openba.model.decoding import Session, pad
from openba.model.files import load_model
from openba.model.generate import generate, start_tokens
from openba.model.seq2seq import Seq2Seq
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import LOWER_IS_BETTER, BenchmarkRecipe, is_mean_of_items, score_key

BATCH = 64
"""Continuations scored together; those of one prompt share its encoding."""
DECLARATION = "declaration"
"""Key of an exported item: the file with its benchmark."""
_MODULE = "openba.evaluate.harness_model"
PROMPT = f"{_MODULE}.prompt"
"""Imported by lm-eval 0.4.13 before it looks for the model, which is then there."""


class Scorer:
    """What lm-eval asks of a model, without lm-eval: log-likelihoods and texts; prompts as released."""

    def __init__(self, folder: str, answer_prefix: str = "") -> None:
        self.folder = Path(folder)
        self.model, self.tokenizer = load_model(self.folder)
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

    def answered(self, docs: Sequence[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
        """Items of our exported tasks, answered as the native evaluation does, in the same batches.

        Args:
            docs: of the requests; one that stands there more than once, for each choice, is asked once.
            mode: R, S or X, the mode token of the prompts.
        """
        items: dict[tuple[str, str], dict[str, Any]] = {}
        by_declaration: dict[str, dict[str, dict[str, Any]]] = {}
        for doc in docs:
            by_declaration.setdefault(doc[DECLARATION], {})[doc["id"]] = doc
        for path, of_id in by_declaration.items():
            benchmark = BenchmarkRecipe.model_validate_json(Path(path).read_text(encoding="utf-8"))
            rows = list(of_id.values())
            for batch in batches(rows, benchmark):
                chosen = [rows[i] for i in batch]
                for item in answered(self.model, self.tokenizer, chosen, benchmark, mode, self.length):
                    ends = [
                        [*self.tokenizer.encode(choice), self.tokenizer.eos] for choice in item["choices"]
                    ]
                    lengths = [1 if benchmark.method == "letters" else len(ids) for ids in ends]
                    items[path, item["id"]] = item | {"method": benchmark.method, "tokens": lengths}
        return [items[doc[DECLARATION], doc["id"]] for doc in docs]


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
        session.select_rows(torch.tensor(which, device=device))
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
        def __init__(
            self, pretrained: str, answer_prefix: str = "", prefix: str = "S", **ignored: Any
        ) -> None:
            super().__init__()
            del ignored  # batch_size, device and the like, which lm-eval passes to every model
            self.scorer = Scorer(pretrained, answer_prefix)
            self.mode = prefix

        def loglikelihood(self, requests: list[Any]) -> list[tuple[Any, ...]]:
            return _shared_out(requests, self._exported_likelihoods, self._likelihoods)

        def _likelihoods(self, requests: list[Any]) -> list[tuple[Any, ...]]:
            return list(self.scorer.loglikelihood([request.args for request in requests]))

        def _exported_likelihoods(self, requests: list[Any]) -> list[tuple[Any, ...]]:
            items = self.scorer.answered([request.doc for request in requests], self.mode)
            pairs = zip(requests, items, strict=True)
            return [exported_likelihood(item, request.idx) for request, item in pairs]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            pairs = [("", request.args[0]) for request in requests]
            return [score for score, _ in self.scorer.loglikelihood(pairs)]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return _shared_out(requests, self._exported_texts, self._texts)

        def _exported_texts(self, requests: list[Any]) -> list[str]:
            return [item["output"] for item in self.scorer.answered([r.doc for r in requests], self.mode)]

        def _texts(self, requests: list[Any]) -> list[str]:
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


def export(out: Path, benchmarks: dict[str, BenchmarkRecipe]) -> tuple[list[Path], dict[str, str]]:
    """Write each benchmark as `openba_NAME.yaml`, with its items and its declaration beside it.

    Returns:
        The YAML files; and benchmark, or benchmark and metric, -> why it was not exported.
    """
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    refused: dict[str, str] = {}
    for name, benchmark in benchmarks.items():
        left_out = sorted({"mauve", "sim"} & set(benchmark.metrics))
        if benchmark.attempts > 1:
            refused[name] = f"attempts {benchmark.attempts}: lm-eval asks once; set attempts=1 and k=[1]"
        elif len(left_out) == len(benchmark.metrics):
            refused[name] = (
                f"{', '.join(left_out)} compare by a further model, which a task of lm-eval has not"
            )
        else:
            refused |= {
                f"{name}: {m}": "compares by a further model; the others are exported" for m in left_out
            }
            try:
                written.append(_export(out, name, benchmark))
            except UserError as error:
                refused[name] = str(error)
    return written, refused


def _export(out: Path, name: str, benchmark: BenchmarkRecipe) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        tasks.build(Build(Path(folder), TaskStep(name=name, task=benchmark.task), {}))
        rows = pq.read_table(Path(folder) / "heldout.parquet").slice(0, benchmark.items).to_pylist()
    if not rows:
        raise UserError("its task has no held-out record; raise task.heldout or add data")
    declared = (out / f"openba_{name}.json").resolve()
    declared.write_text(benchmark.model_dump_json(indent=1), encoding="utf-8")
    items = out / f"openba_{name}.jsonl"
    lines = [json.dumps(_item(row, declared), ensure_ascii=False) + "\n" for row in rows]
    items.write_text("".join(lines), encoding="utf-8")
    file = out / f"openba_{name}.yaml"
    task = yaml.dump(_task(name, benchmark, items), Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    file.write_text(task, encoding="utf-8")
    return file


def _item(row: dict[str, Any], declared: Path) -> dict[str, Any]:
    kept = ("id", "category", "input", "turns", "target", "choices", "references")
    gold = row["choices"].index(row["target"]) if row["target"] in row["choices"] else -1
    return {key: row[key] for key in kept} | {"gold": gold, DECLARATION: str(declared)}


def _task(name: str, benchmark: BenchmarkRecipe, items: Path) -> dict[str, Any]:
    task: dict[str, Any] = {
        "task": f"openba_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items.resolve())}},
        "test_split": "test",
        "doc_to_text": _Function(PROMPT),
        "process_results": _Function(f"{_MODULE}.process_results"),
        "metric_list": list(_metric_list(benchmark)),
        "metadata": {"version": benchmark.version},
    }
    if benchmark.method == "generate":
        until = ["</s>", *benchmark.stop]
        asked = {"until": until, "max_gen_toks": benchmark.max_new_tokens, "do_sample": False}
        return task | {"output_type": "generate_until", "doc_to_target": "target", "generation_kwargs": asked}
    if benchmark.method == "likelihood":
        return task | {"output_type": "loglikelihood", "doc_to_target": "target"}
    of_choices = {"doc_to_target": "gold", "doc_to_choice": "choices", "target_delimiter": ""}
    return task | {"output_type": "multiple_choice", **of_choices}


def _metric_list(benchmark: BenchmarkRecipe) -> Iterator[dict[str, Any]]:
    for metric in benchmark.metrics:
        if metric in ("mauve", "sim"):
            continue
        is_mean = is_mean_of_items(metric)
        yield {
            "metric": score_key(metric, benchmark.k),
            "aggregation": "mean" if is_mean else _Function(f"{_MODULE}.aggregate_{metric}"),
            "higher_is_better": metric not in LOWER_IS_BETTER,
        }
    if benchmark.average == "category" and is_mean_of_items(benchmark.metrics[0]):
        higher = benchmark.metrics[0] not in LOWER_IS_BETTER
        yield {
            "metric": "average",
            "aggregation": _Function(f"{_MODULE}.average"),
            "higher_is_better": higher,
        }


class _Function(str):
    """A name that stands in YAML as `!function NAME`."""


class _Dumper(yaml.SafeDumper):
    """Writes lm-eval's `!function`; leaves out anchors, which its loader reads but people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def _shared_out(
    requests: list[Any], exported: Callable[[list[Any]], list[Any]], others: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Results in the order of the requests; our exported tasks have a function of their own."""
    results: list[Any] = [None] * len(requests)
    for is_ours, answer_all in ((True, exported), (False, others)):
        positions = [
            i for i, request in enumerate(requests) if (DECLARATION in (request.doc or {})) == is_ours
        ]
        answers = answer_all([requests[i] for i in positions]) if positions else []
        for i, result in zip(positions, answers, strict=True):
            results[i] = result
    return results


def exported_likelihood(item: dict[str, Any], choice: int) -> tuple[float, bool, int]:
    """Log-likelihood in nats, whether greedy decoding agrees (never told), and number of tokens.

    Of a letter the logit, by which the release chooses, as one token.
    """
    if item["method"] == "likelihood":
        nats, tokens = item["scores"]
        return -nats, False, int(tokens)
    tokens = item["tokens"][choice]
    return item["scores"][choice] * tokens, False, tokens


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
    written, refused = export(given.out, chosen([], given.names, given.data, given.set))
    for file in written:
        print(file)
    for name, reason in refused.items():
        print(f"openba: {name}: not exported: {reason}", file=sys.stderr)
    if any(": " not in name for name in refused) or not written:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"openba: {error}")
