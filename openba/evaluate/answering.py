"""How a model answers prompts: the likeliest letter, the likeliest choice, greedy or drawn text.

Owns the decoder's answer prefix and the form of one answer. What the prompts are and how
answers are scored stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
import xxhash

from openba.errors import UserError
from openba.model.decoding import Session
from openba.model.generate import continuation_losses, generate_ids, next_logits, start_tokens
from openba.model.seq2seq import Seq2Seq
from openba.recipes.evaluate import BenchmarkRecipe
from openba.tokenizer.tokenizer import Tokenizer

_NOT_FINITE = "not finite numbers; its weights are damaged or overflow in this precision"


@dataclass
class Answer:
    """One item's answer."""

    text: str
    scores: list[float] = field(default_factory=list)
    """Of each choice, higher is likelier: logits of letters, or mean log-likelihoods per token in nats.
    Method `likelihood`: loss of the right answer in nats, and its tokens."""
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
    """Answers of one batch in the order of the rows.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        sources: wrapped encoder ids of each row's prompt.
        rows: of the task's held-out part, all with the same `choices` where those are asked for.
        benchmark: how to answer.

    Raises:
        UserError: the method needs choices and a row has none, or a letter is no token.
    """
    if benchmark.method == "generate":
        return _generate(model, tokenizer, sources, rows, benchmark)
    start = [*start_tokens(tokenizer), *tokenizer.encode(benchmark.answer_prefix)]
    if benchmark.method == "likelihood":
        targets = [
            [*tokenizer.encode(row["target"])[: benchmark.max_new_tokens], tokenizer.eos] for row in rows
        ]
        losses = [sum(one) for one in continuation_losses(model, sources, targets, start)]
        for row, loss in zip(rows, losses, strict=True):
            if not isfinite(loss):
                raise UserError(f"record {row['id']}: the loss of the right answer is {loss}, {_NOT_FINITE}")
        return [Answer("", [loss, float(len(ids))]) for loss, ids in zip(losses, targets, strict=True)]
    scored = _letters if benchmark.method == "letters" else _choices
    choices = rows[0]["choices"]
    if not choices:
        raise UserError(f"record {rows[0]['id']} has no choices, so no method {benchmark.method!r}")
    answers = []
    for row, scores in zip(rows, scored(model, tokenizer, list(sources), choices, start), strict=True):
        if not all(map(isfinite, scores)):  # the maximum of these would be the first choice
            raise UserError(
                f"record {row['id']}: the model's scores of the choices are {scores}, {_NOT_FINITE}"
            )
        answers.append(Answer(choices[scores.index(max(scores))], scores))
    return answers


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
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: Sequence[list[int]],
    rows: Sequence[dict[str, Any]],
    benchmark: BenchmarkRecipe,
) -> list[Answer]:
    if benchmark.attempts == 1:
        written = generate_ids(model, tokenizer, sources, benchmark.max_new_tokens)
        return [Answer(tokenizer.decode(ids), unfinished=ids[-1] != tokenizer.eos) for ids in written]
    answers = []
    for row, source in zip(rows, sources, strict=True):
        seed = xxhash.xxh32_intdigest(row["id"].encode())
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
