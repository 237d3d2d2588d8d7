"""lm-evaluation-harness: our models there, and our benchmarks as its tasks.

Owns the model class of its `--model openba`, and the export of a benchmark's items as a task of
its own YAML form. lm-eval is no dependency of this package; it is imported when it is used:

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
from typing import Any, Protocol, TypeVar

import pyarrow.parquet as pq
import torch
import yaml

from openba.artifacts import Build
from openba.data import labelled
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.evaluate.items import AnsweredItem, HeldOutRecord
from openba.evaluate.shards import answer_records, make_batches
from openba.model.decoding import Session, pad
from openba.model.generate import generate, start_tokens
from openba.model.loading import load_model
from openba.model.seq2seq import Seq2Seq
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import LOWER_IS_BETTER, BenchmarkRecipe, is_mean_of_items, score_key

BATCH_SIZE = 64
"""Continuations scored together; those of one prompt share its encoding."""
DECLARATION = "declaration"
"""Key of an exported item: path of the file with its benchmark."""
_MODULE = "openba.evaluate.harness_model"
PROMPT_FUNCTION = f"{_MODULE}.prompt"
"""Imported by lm-eval 0.4.13 before it looks up the model, which is registered by that import."""
_COMPARED_BY_MODEL = ("mauve", "sim")
"""Metrics that need a further model, for which a task of lm-eval has no place."""

Result = TypeVar("Result")


class ExportedItem(HeldOutRecord):
    """Line of an exported task's JSON-lines file."""

    gold: int
    """Index of the right choice; -1: none."""
    declaration: str


class ScoredItem(AnsweredItem):
    """Answered item with what lm-eval's log-likelihoods are computed from."""

    method: str
    tokens: list[int]
    """Number of tokens of each choice."""


class LmEvalRequest(Protocol):
    """Part of `lm_eval.api.instance.Instance` that is used here."""

    args: tuple[str, Any]
    """Prompt, and a continuation or the settings of generation."""
    doc: ExportedItem
    idx: int
    """Index of the choice."""


class Scorer:
    """Log-likelihoods and texts of a model in lm-eval's form, without lm-eval; prompts as in the release."""

    def __init__(self, folder: str, answer_prefix: str = "") -> None:
        self.folder = Path(folder)
        self.model, self.tokenizer = load_model(self.folder)
        if torch.cuda.is_available():
            self.model = self.model.cuda()
        self.max_length = self.model.architecture.max_seq_length
        self.decoder_start = [*start_tokens(self.tokenizer), *self.tokenizer.encode(answer_prefix)]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return log-likelihood in nats of each prompt's continuation, and whether greedy decoding agrees."""
        sources = {prompt: encode_input(self.tokenizer, prompt, (), self.max_length) for prompt, _ in pairs}
        # Sorted by length for less padding, and by prompt, so that a prompt is encoded once for all its
        # continuations.
        order = sorted(
            range(len(pairs)),
            key=lambda request_index: (len(sources[pairs[request_index][0]]), pairs[request_index][0]),
        )
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for batch_start in range(0, len(order), BATCH_SIZE):
            batch_rows = order[batch_start : batch_start + BATCH_SIZE]
            targets = [self.tokenizer.encode(pairs[row][1]) or [self.tokenizer.eos] for row in batch_rows]
            batch_sources = [sources[pairs[row][0]] for row in batch_rows]
            batch_scores = score_continuations(self.model, batch_sources, targets, self.decoder_start)
            for row, result in zip(batch_rows, batch_scores, strict=True):
                results[row] = result
        return results

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Return greedy answers of at most `max_new_tokens` tokens."""
        sources = [encode_input(self.tokenizer, prompt, (), self.max_length) for prompt in prompts]
        return generate(self.model, self.tokenizer, sources, max_new_tokens)

    def answer_items(self, items: Sequence[ExportedItem], mode: str) -> list[ScoredItem]:
        """Answer items of our exported tasks in the same batches as the native evaluation.

        Args:
            items: of lm-eval's requests; lm-eval repeats an item for each choice, here it is answered once.
            mode: R, S or X, the mode token of the prompts.
        """
        # By declaration: lm-eval may pass requests of several tasks in one call.
        items_by_declaration: dict[str, dict[str, ExportedItem]] = {}
        for item in items:
            items_by_declaration.setdefault(item["declaration"], {})[item["id"]] = item
        scored_items: dict[tuple[str, str], ScoredItem] = {}
        for declaration, items_by_id in items_by_declaration.items():
            benchmark = BenchmarkRecipe.model_validate_json(Path(declaration).read_text(encoding="utf-8"))
            distinct_items = list(items_by_id.values())
            for batch in make_batches(distinct_items, benchmark):
                batch_items = [distinct_items[row] for row in batch]
                answered_items = answer_records(
                    self.model, self.tokenizer, batch_items, benchmark, mode, self.max_length
                )
                for answered_item in answered_items:
                    scored_item = self._with_lengths(answered_item, benchmark)
                    scored_items[declaration, answered_item["id"]] = scored_item
        return [scored_items[item["declaration"], item["id"]] for item in items]

    def _with_lengths(self, item: AnsweredItem, benchmark: BenchmarkRecipe) -> ScoredItem:
        """Add the number of tokens of each choice; a letter is scored as one token."""
        encoded_choices = [self.tokenizer.encode(choice) for choice in item["choices"]]
        choice_lengths = [
            1 if benchmark.method == "letters" else len(token_ids) + 1 for token_ids in encoded_choices
        ]
        return {**item, "method": benchmark.method, "tokens": choice_lengths}


@torch.inference_mode()
def score_continuations(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    decoder_start: Sequence[int],
) -> list[tuple[float, bool]]:
    """Return each target's log-likelihood after `decoder_start`, and whether each token is the likeliest.

    Targets of one source that differ in their last token only, as letters do, share one decoder row.
    """
    source_numbers: dict[tuple[int, ...], int] = {}
    row_sources: list[int] = []  # source number of each decoder row
    decoder_rows: dict[tuple[int, tuple[int, ...]], int] = {}
    target_rows: list[int] = []  # decoder row of each target
    for source, target in zip(sources, targets, strict=True):
        source_number = source_numbers.setdefault(tuple(source), len(source_numbers))
        row_key = (source_number, tuple(target[:-1]))
        if row_key not in decoder_rows:
            decoder_rows[row_key] = len(row_sources)
            row_sources.append(source_number)
        target_rows.append(decoder_rows[row_key])
    device = model.shared_embedding.weight.device
    decoder_ids, _ = pad([[*decoder_start, *prefix] for _, prefix in decoder_rows], device)
    session = Session(model, list(source_numbers), decoder_ids.shape[1])
    if row_sources != list(range(len(source_numbers))):
        # Repeats a source's encoding for each of its decoder rows.
        session.select_rows(torch.tensor(row_sources, device=device))
    hidden = session.advance(decoder_ids)[:, len(decoder_start) - 1 :]
    labels, is_label = pad(targets, device)
    log_probabilities = torch.zeros(labels.shape, device=device)
    is_likeliest = torch.ones(labels.shape, dtype=torch.bool, device=device)
    target_index, position = is_label.nonzero(as_tuple=True)
    row_index = torch.tensor(target_rows, device=device)[target_index]
    # The output layer is computed once for each distinct decoder position.
    positions, inverse = torch.unique(row_index * hidden.shape[1] + position, return_inverse=True)
    logits = model.logits(hidden.flatten(0, 1)[positions]).float()
    log_probabilities[is_label] = logits.log_softmax(-1)[inverse, labels[is_label]]
    is_likeliest[is_label] = logits.argmax(-1)[inverse] == labels[is_label]
    return list(zip(log_probabilities.sum(1).tolist(), is_likeliest.all(1).tolist(), strict=True))


@cache
def register() -> type:
    """Register `openba` as a model of lm-eval; returns its class, always the same.

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
        # `other_options`: batch_size, device and the like, which lm-eval passes to every model.
        def __init__(
            self, pretrained: str, answer_prefix: str = "", prefix: str = "S", **other_options: object
        ) -> None:
            super().__init__()
            del other_options
            self.scorer = Scorer(pretrained, answer_prefix)
            self.mode = prefix

        def loglikelihood(self, requests: list[LmEvalRequest]) -> list[tuple[float, ...]]:
            return _dispatch(requests, self._exported_likelihoods, self._likelihoods)

        def _likelihoods(self, requests: list[LmEvalRequest]) -> list[tuple[float, ...]]:
            return list(self.scorer.loglikelihood([request.args for request in requests]))

        def _exported_likelihoods(self, requests: list[LmEvalRequest]) -> list[tuple[float, ...]]:
            items = self.scorer.answer_items([request.doc for request in requests], self.mode)
            return [
                exported_likelihood(item, request.idx) for request, item in zip(requests, items, strict=True)
            ]

        def loglikelihood_rolling(self, requests: list[LmEvalRequest]) -> list[float]:
            pairs = [("", request.args[0]) for request in requests]
            return [log_likelihood for log_likelihood, _ in self.scorer.loglikelihood(pairs)]

        def generate_until(self, requests: list[LmEvalRequest]) -> list[str]:
            return _dispatch(requests, self._exported_texts, self._texts)

        def _exported_texts(self, requests: list[LmEvalRequest]) -> list[str]:
            items = self.scorer.answer_items([request.doc for request in requests], self.mode)
            return [item["output"] for item in items]

        def _texts(self, requests: list[LmEvalRequest]) -> list[str]:
            settings = [request.args[1] for request in requests]
            # One limit for all, the largest: texts are cut at their own stop strings afterwards.
            max_new_tokens = max(int(setting.get("max_gen_toks", 256)) for setting in settings)
            texts = self.scorer.generate([request.args[0] for request in requests], max_new_tokens)
            return [
                cut_at_stop(text, setting.get("until", []))
                for text, setting in zip(texts, settings, strict=True)
            ]

    return OpenBA


def __getattr__(name: str) -> type:
    """Return `OpenBA`, named by the entry point for lm-eval's plugins (its main branch since August 2026)."""
    if name == "OpenBA":
        return register()
    raise AttributeError(name)


def export(out_folder: Path, benchmarks: dict[str, BenchmarkRecipe]) -> tuple[list[Path], dict[str, str]]:
    """Write each benchmark as `openba_NAME.yaml`, with its items and its declaration beside it.

    Returns:
        The YAML files; and benchmark, or benchmark and metric, -> why it was not exported.
    """
    out_folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    refused: dict[str, str] = {}
    for name, benchmark in benchmarks.items():
        # They need a model beside the evaluated one, which lm-eval tasks cannot name.
        omitted_metrics = sorted(set(_COMPARED_BY_MODEL) & set(benchmark.metrics))
        if benchmark.attempts > 1:
            refused[name] = f"attempts {benchmark.attempts}: lm-eval asks once; set attempts=1 and k=[1]"
        elif len(omitted_metrics) == len(benchmark.metrics):
            metric_names = ", ".join(omitted_metrics)
            refused[name] = f"{metric_names} compare by a further model, which a task of lm-eval has not"
        else:
            for metric in omitted_metrics:
                refused[f"{name}: {metric}"] = "compares by a further model; the others are exported"
            try:
                written.append(_export_benchmark(out_folder, name, benchmark))
            except UserError as error:
                refused[name] = str(error)
    return written, refused


def _export_benchmark(out_folder: Path, name: str, benchmark: BenchmarkRecipe) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        labelled.build(Build(Path(folder), TaskStep(name=name, task=benchmark.task), {}))
        records: list[HeldOutRecord] = (
            pq.read_table(Path(folder) / "heldout.parquet").slice(0, benchmark.items).to_pylist()
        )
    if not records:
        raise UserError("its task has no held-out record; raise task.heldout or add data")
    declaration_file = (out_folder / f"openba_{name}.json").resolve()
    declaration_file.write_text(benchmark.model_dump_json(indent=1), encoding="utf-8")
    items_file = out_folder / f"openba_{name}.jsonl"
    items = [_exported_item(record, declaration_file) for record in records]
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
    items_file.write_text("".join(lines), encoding="utf-8")
    task_file = out_folder / f"openba_{name}.yaml"
    task = _task_declaration(name, benchmark, items_file)
    task_yaml = yaml.dump(task, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    task_file.write_text(task_yaml, encoding="utf-8")
    return task_file


def _exported_item(record: HeldOutRecord, declaration_file: Path) -> ExportedItem:
    # lm-eval takes the right choice by its index, and -1 where there are no choices.
    has_gold = record["target"] in record["choices"]
    return {
        "id": record["id"],
        "category": record["category"],
        "input": record["input"],
        "turns": record["turns"],
        "target": record["target"],
        "choices": record["choices"],
        "references": record["references"],
        "gold": record["choices"].index(record["target"]) if has_gold else -1,
        "declaration": str(declaration_file),
    }


def _task_declaration(name: str, benchmark: BenchmarkRecipe, items_file: Path) -> dict[str, object]:
    """Return a task in lm-eval's form."""
    task: dict[str, object] = {
        "task": f"openba_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items_file.resolve())}},
        "test_split": "test",
        "doc_to_text": _FunctionName(PROMPT_FUNCTION),
        "process_results": _FunctionName(f"{_MODULE}.process_results"),
        "metric_list": list(_metric_entries(benchmark)),
        "metadata": {"version": benchmark.version},
    }
    if benchmark.method == "generate":
        settings = {
            "until": ["</s>", *benchmark.stop],
            "max_gen_toks": benchmark.max_new_tokens,
            "do_sample": False,
        }
        fields = {"output_type": "generate_until", "doc_to_target": "target", "generation_kwargs": settings}
    elif benchmark.method == "likelihood":
        fields = {"output_type": "loglikelihood", "doc_to_target": "target"}
    else:
        fields = {
            "output_type": "multiple_choice",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
            "target_delimiter": "",
        }
    return task | fields


def _metric_entries(benchmark: BenchmarkRecipe) -> Iterator[dict[str, object]]:
    """Yield the entries of a task's `metric_list`."""
    for metric in benchmark.metrics:
        if metric in _COMPARED_BY_MODEL:
            continue
        is_mean = is_mean_of_items(metric)
        yield {
            "metric": score_key(metric, benchmark.k),
            "aggregation": "mean" if is_mean else _FunctionName(f"{_MODULE}.aggregate_{metric}"),
            "higher_is_better": metric not in LOWER_IS_BETTER,
        }
    if benchmark.average == "category" and is_mean_of_items(benchmark.metrics[0]):
        yield {
            "metric": "average",
            "aggregation": _FunctionName(f"{_MODULE}.average"),
            "higher_is_better": benchmark.metrics[0] not in LOWER_IS_BETTER,
        }


class _FunctionName(str):
    """Name written to YAML as `!function NAME`."""


class _Dumper(yaml.SafeDumper):
    """YAML writer of lm-eval's `!function`; writes no anchors, which people do not read."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


_Dumper.add_representer(_FunctionName, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def _dispatch(
    requests: list[LmEvalRequest],
    answer_exported: Callable[[list[LmEvalRequest]], list[Result]],
    answer_others: Callable[[list[LmEvalRequest]], list[Result]],
) -> list[Result]:
    """Answer requests of our exported tasks by one function, others by another; keeps the order."""
    results: dict[int, Result] = {}
    for is_exported, answer_requests in ((True, answer_exported), (False, answer_others)):
        positions = [
            position
            for position, request in enumerate(requests)
            if (DECLARATION in (request.doc or {})) == is_exported
        ]
        answers = answer_requests([requests[position] for position in positions]) if positions else []
        results |= zip(positions, answers, strict=True)
    return [results[position] for position in range(len(requests))]


def exported_likelihood(item: ScoredItem, choice_index: int) -> tuple[float, bool, int]:
    """Return log-likelihood in nats, False in place of greedy agreement, and number of tokens.

    Of a letter the logit, by which the release chooses, as one token.
    """
    if item["method"] == "likelihood":
        loss_nats, token_count = item["scores"]
        return -loss_nats, False, int(token_count)
    choice_tokens = item["tokens"][choice_index]
    # Scores of choices are means per token.
    return item["scores"][choice_index] * choice_tokens, False, choice_tokens


def cut_at_stop(text: str, stop_strings: Sequence[str] | str) -> str:
    """Return the text before the first stop string."""
    for stop_string in [stop_strings] if isinstance(stop_strings, str) else stop_strings:
        text = text.partition(stop_string)[0] if stop_string else text
    return text


def main(arguments: list[str]) -> None:
    """Run `export DIR NAME... [--data DIR] [--set KEY=VALUE]...`, or `run` with lm-eval's own arguments."""
    import argparse

    from openba.evaluate.suite import select_benchmarks

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
    options = parser.parse_args(arguments)
    benchmarks = select_benchmarks([], options.names, options.data, options.set)
    written, refused = export(options.out, benchmarks)
    for task_file in written:
        print(task_file)
    for name, reason in refused.items():
        print(f"openba: {name}: not exported: {reason}", file=sys.stderr)
    # A key with ": " names a metric of a benchmark that was exported without it.
    if any(": " not in name for name in refused) or not written:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"openba: {error}")
