"""Answers of a model to prompts: the likeliest letter or choice, greedy or sampled text.

Owns the decoder's answer prefix and the form of one answer. Prompts are rendered by `openba.data`, answers
scored by `metrics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
import xxhash

from openba.errors import UserError
from openba.evaluate.items import HeldOutRecord
from openba.model.decoding import Session
from openba.model.generate import continuation_losses, generate_ids, next_logits, start_tokens
from openba.model.seq2seq import Seq2Seq
from openba.recipes.evaluate import BenchmarkRecipe
from openba.tokenizer.tokenizer import Tokenizer

_NOT_FINITE = "not finite numbers; its weights are damaged or overflow in this precision"


@dataclass
class ModelAnswer:
    """Answer to one item."""

    text: str
    scores: list[float] = field(default_factory=list)
    """Score of each choice, higher is likelier: logits of letters, or mean log-likelihoods per token in nats.
    Method `likelihood`: loss of the right answer in nats, and its number of tokens."""
    is_unfinished: bool = False
    """Whether it was cut off at `max_new_tokens`."""
    attempts: list[str] = field(default_factory=list)


def answer_batch(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: Sequence[list[int]],
    records: Sequence[HeldOutRecord],
    benchmark: BenchmarkRecipe,
) -> list[ModelAnswer]:
    """Answer one batch; the answers are in the order of the records.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        sources: wrapped encoder ids of each record's prompt.
        records: of the task's held-out part, all with the same `choices` where the method needs those.
        benchmark: method and its settings.

    Raises:
        UserError: the method needs choices and a record has none, or a letter is no token.
    """
    if benchmark.method == "generate":
        return _generate_answers(model, tokenizer, sources, records, benchmark)
    decoder_start = [*start_tokens(tokenizer), *tokenizer.encode(benchmark.answer_prefix)]
    if benchmark.method == "likelihood":
        return _score_references(model, tokenizer, sources, records, benchmark, decoder_start)
    score_choices = _letter_logits if benchmark.method == "letters" else _choice_likelihoods
    choices = records[0]["choices"]
    if not choices:
        raise UserError(f"record {records[0]['id']} has no choices, so no method {benchmark.method!r}")
    answers = []
    choice_scores = score_choices(model, tokenizer, list(sources), choices, decoder_start)
    for record, scores in zip(records, choice_scores, strict=True):
        # Of a list with NaN, max() may return its first element, and the first choice would be taken.
        if not all(map(isfinite, scores)):
            raise UserError(
                f"record {record['id']}: the model's scores of the choices are {scores}, {_NOT_FINITE}"
            )
        answers.append(ModelAnswer(choices[scores.index(max(scores))], scores))
    return answers


def _score_references(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: Sequence[list[int]],
    records: Sequence[HeldOutRecord],
    benchmark: BenchmarkRecipe,
    decoder_start: list[int],
) -> list[ModelAnswer]:
    """Return the loss of each right answer, up to `max_new_tokens`."""
    targets = [
        [*tokenizer.encode(record["target"])[: benchmark.max_new_tokens], tokenizer.eos] for record in records
    ]
    token_losses = continuation_losses(model, sources, targets, decoder_start)
    answers = []
    for record, losses, target in zip(records, token_losses, targets, strict=True):
        total_loss = sum(losses)
        if not isfinite(total_loss):
            raise UserError(
                f"record {record['id']}: the loss of the right answer is {total_loss}, {_NOT_FINITE}"
            )
        answers.append(ModelAnswer("", [total_loss, float(len(target))]))
    return answers


def _letter_logits(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: list[list[int]],
    choices: list[str],
    decoder_start: list[int],
) -> list[list[float]]:
    """Return logits of the bare letters, without the space piece before them, as the release scores."""
    letter_ids = [tokenizer.pieces.id(choice) for choice in choices]
    if tokenizer.unknown in letter_ids:
        letter = choices[letter_ids.index(tokenizer.unknown)]
        raise UserError(f"method 'letters': {letter!r:.40} is no token of the tokenizer; use method 'choice'")
    return next_logits(model, sources, decoder_start, letter_ids).tolist()


def _choice_likelihoods(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: list[list[int]],
    choices: list[str],
    decoder_start: list[int],
) -> list[list[float]]:
    """Return the mean log-likelihood per token of each choice as a continuation, in nats."""
    targets = [[*tokenizer.encode(choice), tokenizer.eos] for choice in choices]
    repeated_sources = [source for source in sources for _ in choices]
    token_losses = continuation_losses(model, repeated_sources, targets * len(sources), decoder_start)
    # Means, since choices have different lengths and a sum would favour the shortest.
    means = [-sum(losses) / len(losses) for losses in token_losses]
    return [means[first_row : first_row + len(choices)] for first_row in range(0, len(means), len(choices))]


def _generate_answers(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: Sequence[list[int]],
    records: Sequence[HeldOutRecord],
    benchmark: BenchmarkRecipe,
) -> list[ModelAnswer]:
    if benchmark.attempts == 1:
        outputs = generate_ids(model, tokenizer, sources, benchmark.max_new_tokens)
        return [
            ModelAnswer(tokenizer.decode(output_ids), is_unfinished=output_ids[-1] != tokenizer.eos)
            for output_ids in outputs
        ]
    answers = []
    for record, source in zip(records, sources, strict=True):
        # From the record's id, so that an item's samples do not depend on batches and shards.
        seed = xxhash.xxh32_intdigest(record["id"].encode())
        samples = _sample_attempts(model, tokenizer, source, benchmark, seed)
        texts = [tokenizer.decode(output_ids) for output_ids in samples]
        # The first attempt is the one that other metrics than pass_at_k score.
        is_unfinished = samples[0][-1] != tokenizer.eos
        answers.append(ModelAnswer(texts[0], is_unfinished=is_unfinished, attempts=texts))
    return answers


@torch.inference_mode()
def _sample_attempts(
    model: Seq2Seq, tokenizer: Tokenizer, source: list[int], benchmark: BenchmarkRecipe, seed: int
) -> list[list[int]]:
    """Sample the benchmark's number of answers to one prompt at its temperature."""
    device = model.shared_embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    start_ids = start_tokens(tokenizer)
    session = Session(model, [source] * benchmark.attempts, len(start_ids) + benchmark.max_new_tokens)
    outputs: list[list[int]] = [[] for _ in range(benchmark.attempts)]
    next_ids = torch.tensor([start_ids] * benchmark.attempts, device=device)
    for _ in range(benchmark.max_new_tokens):
        # Logits beyond the tokenizer's size belong to padding rows of the embedding.
        logits = session.logits(next_ids)[:, : tokenizer.size]
        probabilities = (logits / benchmark.temperature).softmax(-1)
        next_ids = torch.multinomial(probabilities, 1, generator=generator)
        for output_ids, token_id in zip(outputs, next_ids[:, 0].tolist(), strict=True):
            if not output_ids or output_ids[-1] != tokenizer.eos:
                output_ids.append(token_id)
        if all(output_ids[-1] == tokenizer.eos for output_ids in outputs):
            break
    return outputs
