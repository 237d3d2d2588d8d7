"""How a model answers prompts: the likeliest letter, the likeliest choice, greedy or drawn text.

Owns batches, the decoder's answer prefix and the form of one answer. What the prompts are and how
answers are scored stands elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.decoding import Session
from openba.model.generate import continuation_losses, generate_ids, next_logits, start_tokens
from openba.model.seq2seq import Seq2Seq
from openba.recipes.evaluate import BenchmarkRecipe

BATCH = 16
"""Prompts answered together."""


@dataclass
class Answer:
    """One item's answer."""

    text: str
    scores: list[float] = field(default_factory=list)
    """Of each choice, higher is likelier: logits of letters, or mean log-likelihoods per token in nats."""
    unfinished: bool = False
    """It was cut off at `max_new_tokens`."""
    attempts: list[str] = field(default_factory=list)


def answer(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: Sequence[list[int]],
    rows: Sequence[dict[str, Any]],
    benchmark: BenchmarkRecipe,
) -> list[Answer]:
    """Answers in the order of the rows.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        sources: wrapped encoder ids of each row's prompt.
        rows: of the task's held-out part; `choices` is read.
        benchmark: how to answer.

    Raises:
        UserError: the method needs choices and a row has none, or a letter is no token.
    """
    if benchmark.method == "generate":
        return _generate(model, tokenizer, sources, benchmark)
    start = [*start_tokens(tokenizer), *tokenizer.encode(benchmark.answer_prefix)]
    scored = _letters if benchmark.method == "letters" else _choices
    answers: list[Answer] = [Answer("")] * len(sources)
    for chosen in _batches(sources, rows):
        choices = rows[chosen[0]]["choices"]
        if not choices:
            raise UserError(
                f"record {rows[chosen[0]]['id']} has no choices, so no method {benchmark.method!r}"
            )
        found = scored(model, tokenizer, [sources[i] for i in chosen], choices, start)
        for i, scores in zip(chosen, found, strict=True):
            answers[i] = Answer(choices[scores.index(max(scores))], scores)
    return answers


def _batches(sources: Sequence[list[int]], rows: Sequence[dict[str, Any]]) -> Iterator[list[int]]:
    """Positions of rows whose choices are as many, or the same if few: sources of like lengths together."""
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        alike[tuple(row["choices"])].append(i)
    for positions in alike.values():
        ordered = sorted(positions, key=lambda i: len(sources[i]))
        yield from (ordered[begin : begin + BATCH] for begin in range(0, len(ordered), BATCH))


def _letters(
    model: Seq2Seq, tokenizer: Tokenizer, sources: list[list[int]], choices: list[str], start: list[int]
) -> list[list[float]]:
    """Logits of the bare letters, without the space piece before them, as the release scores."""
    pieces = [tokenizer.pieces.id(choice) for choice in choices]
    if tokenizer.unknown in pieces:
        letter = choices[pieces.index(tokenizer.unknown)]
        raise UserError(f"method 'letters': {letter!r:.40} is no token of the tokenizer; use method 'choice'")
    return next_logits(model, sources, start, pieces).tolist()


def _choices(
    model: Seq2Seq, tokenizer: Tokenizer, sources: list[list[int]], choices: list[str], start: list[int]
) -> list[list[float]]:
    targets = [[*tokenizer.encode(choice), tokenizer.eos] for choice in choices]
    repeated = [source for source in sources for _ in choices]
    losses = continuation_losses(model, repeated, targets * len(sources), start)
    means = [-sum(row) / len(row) for row in losses]
    return [means[i : i + len(choices)] for i in range(0, len(means), len(choices))]


def _generate(
    model: Seq2Seq, tokenizer: Tokenizer, sources: Sequence[list[int]], benchmark: BenchmarkRecipe
) -> list[Answer]:
    limit = benchmark.max_new_tokens
    written = generate_ids(model, tokenizer, sources, limit) if benchmark.attempts == 1 else []
    answers = [Answer(tokenizer.decode(ids), unfinished=ids[-1] != tokenizer.eos) for ids in written]
    if benchmark.attempts > 1:
        for seed, source in enumerate(sources):
            drawn = _drawn(model, tokenizer, source, benchmark, seed)
            texts = [tokenizer.decode(ids) for ids in drawn]
            answers.append(Answer(texts[0], unfinished=drawn[0][-1] != tokenizer.eos, attempts=texts))
    return answers


@torch.inference_mode()
def _drawn(
    model: Seq2Seq, tokenizer: Tokenizer, source: list[int], benchmark: BenchmarkRecipe, seed: int
) -> list[list[int]]:
    """The benchmark's number of answers to one prompt, drawn at its temperature; the seed is the item's."""
    device = model.shared_embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    start, limit = start_tokens(tokenizer), benchmark.max_new_tokens
    session = Session(model, [source] * benchmark.attempts, len(start) + limit)
    written: list[list[int]] = [[] for _ in range(benchmark.attempts)]
    ids = torch.tensor([start] * benchmark.attempts, device=device)
    for _ in range(limit):
        chances = (session.logits(ids)[:, : tokenizer.size] / benchmark.temperature).softmax(-1)
        ids = torch.multinomial(chances, 1, generator=generator)
        for text, token in zip(written, ids[:, 0].tolist(), strict=True):
            if not text or text[-1] != tokenizer.eos:
                text.append(token)
        if all(text[-1] == tokenizer.eos for text in written):
            break
    return written
