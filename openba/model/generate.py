"""Answers and scores for prompts: greedy generation, streaming, likelihoods of given continuations.

Owns how an answer begins (the decoder starts from pad and `<extra_id_0>`, as in the release), batches, and
text. How a prompt is wrapped (`<S> text <extra_id_0> </s>`) is `openba.data.instruct`'s, the loop
`decoding.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from openba.model.decoding import Session, Written, check_sources, greedy, pad
from openba.model.seq2seq import Seq2Seq
from openba.tokenizer.tokenizer import Tokenizer

BATCH = 16
"""Prompts decoded together."""


def generate(
    model: Seq2Seq, tokenizer: Tokenizer, sources: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    """Greedy answers, one per source; `sources` are wrapped encoder ids.

    Raises:
        UserError: see `Session`.
    """
    return [tokenizer.decode(ids) for ids in generate_ids(model, tokenizer, sources, max_new_tokens)]


def generate_ids(
    model: Seq2Seq, tokenizer: Tokenizer, sources: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Return answers as token ids; the last is `</s>` unless the answer was cut. Raises the same errors."""
    # Sources of like lengths together: less padding in cross-attention.
    if sources:
        check_sources(model.architecture, sources)  # here, where a row's number is the caller's
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    answers: list[list[int]] = [[] for _ in sources]
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        written: list[list[int]] = [[] for _ in chosen]
        for step in _greedy(model, tokenizer, [sources[i] for i in chosen], max_new_tokens):
            for row, token in zip(step.rows, step.tokens, strict=True):
                written[row].append(token)
        for i, ids in zip(chosen, written, strict=True):
            answers[i] = ids
    return answers


def stream(model: Seq2Seq, tokenizer: Tokenizer, source: list[int], max_new_tokens: int) -> Iterator[str]:
    """One greedy answer in pieces, as they are written; together they are what `generate` gives."""
    written: list[int] = []
    yielded_length = 0
    for step in _greedy(model, tokenizer, [source], max_new_tokens):
        written += step.tokens
        text = tokenizer.decode(written)
        # A character of several byte pieces is replacement characters until its last byte is there.
        if not text.endswith("\ufffd") and len(text) > yielded_length:
            yield text[yielded_length:]
            yielded_length = len(text)
    if rest := tokenizer.decode(written)[yielded_length:]:
        yield rest


def _greedy(
    model: Seq2Seq, tokenizer: Tokenizer, sources: list[list[int]], max_new_tokens: int
) -> Iterator[Written]:
    return greedy(model, sources, start_tokens(tokenizer), tokenizer.eos, tokenizer.size, max_new_tokens)


def start_tokens(tokenizer: Tokenizer) -> list[int]:
    """First tokens of every answer: pad and `<extra_id_0>` (release)."""
    return [tokenizer.pad, tokenizer.sentinel(0)]


@torch.inference_mode()
def continuation_losses(
    model: Seq2Seq, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], start: Sequence[int]
) -> list[list[float]]:
    """Cross entropy of every token of given continuations: minus their log-likelihoods, in nats.

    Args:
        model: in evaluation mode.
        sources: wrapped encoder ids; equal neighbours are encoded once.
        targets: as many token sequences, none empty.
        start: the decoder's tokens before each continuation.

    Raises:
        UserError: see `Session`.
    """
    device = model.shared_embedding.weight.device
    labels, real = pad(targets, device)
    # Choices of one question share its source: it is encoded once, and its rows repeated.
    distinct, which = _distinct(sources)
    session = Session(model, distinct, len(start) + labels.shape[1])
    # Each continuation gets a row of its source's keys and values; they are copied, not computed again.
    session.select_rows(torch.tensor(which, device=device))
    begin = torch.tensor([list(start)] * len(targets), device=device)
    hidden = session.advance(torch.cat([begin, labels[:, :-1]], 1))[:, len(start) - 1 :]
    losses = torch.zeros(labels.shape, device=device)
    logits = model.logits(hidden[real])
    # Padding of shorter continuations stays 0 and is cut off below.
    losses[real] = torch.nn.functional.cross_entropy(logits, labels[real], reduction="none")
    return [row[: len(target)] for row, target in zip(losses.tolist(), targets, strict=True)]


@torch.inference_mode()
def next_logits(
    model: Seq2Seq, sources: Sequence[Sequence[int]], start: Sequence[int], tokens: Sequence[int]
) -> Tensor:
    """fp32 logits `[sources, tokens]` of given tokens right after `start`: how the release scores letters.

    Raises:
        UserError: see `Session`.
    """
    session = Session(model, sources, len(start))
    ids = torch.tensor([list(start)] * len(sources), device=model.shared_embedding.weight.device)
    return session.logits(ids)[:, list(tokens)]


def _distinct(sources: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """Return the sources without equal neighbours, and the index of each source among them."""
    distinct: list[Sequence[int]] = []
    which: list[int] = []
    for source in sources:
        if not distinct or list(distinct[-1]) != list(source):
            distinct.append(source)
        which.append(len(distinct) - 1)
    return distinct, which
