"""Decoding: greedy generation with a cache and likelihood of given continuations.

Owns the loops over positions and how an answer begins: the decoder starts from pad and
`<extra_id_0>`, as in the release. How a prompt is wrapped (`<S> text <extra_id_0> </s>`) is
`openba.data.instruct`'s, the arithmetic `model.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openba.data.tokenizer import Tokenizer
from openba.model.model import IGNORE, OpenBAModel

BATCH = 16
"""Prompts decoded together."""


@torch.inference_mode()
def generate(
    model: OpenBAModel, tokenizer: Tokenizer, sources: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    """Greedy answers, one per source; `sources` are wrapped encoder ids."""
    answers: list[str] = []
    for start in range(0, len(sources), BATCH):
        written = _greedy(model, tokenizer, list(sources[start : start + BATCH]), max_new_tokens)
        answers += [tokenizer.decode(ids) for ids in written]
    return answers


def _greedy(
    model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]], max_new_tokens: int
) -> list[list[int]]:
    ids, mask = _pad(sources, tokenizer.pad, model)
    memory = model.memory(model.encode(ids, mask))
    decoder = torch.tensor([[tokenizer.pad, tokenizer.sentinel(0)]], device=ids.device).repeat(
        len(sources), 1
    )
    hidden, past = model.decode(decoder, memory, mask)
    written: list[Tensor] = []
    finished = torch.zeros(len(sources), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        logits = model.logits(hidden[:, -1])[:, : tokenizer.size]
        following = logits.argmax(-1)
        written.append(following)
        finished |= following == tokenizer.eos
        if bool(finished.all()):
            break
        hidden, past = model.decode(following[:, None], memory, mask, past)
    rows = torch.stack(written, 1).tolist()
    return [row[: row.index(tokenizer.eos)] if tokenizer.eos in row else row for row in rows]


@torch.inference_mode()
def choice_losses(
    model: OpenBAModel, tokenizer: Tokenizer, source: list[int], choices: Sequence[str]
) -> list[float]:
    """Mean cross entropy of each continuation (lower: likelier); the source is encoded once."""
    ids, mask = _pad([source], tokenizer.pad, model)
    targets = [[tokenizer.sentinel(0), *tokenizer.encode(choice), tokenizer.eos] for choice in choices]
    labels, labelled = _pad(targets, tokenizer.pad, model)
    labels = labels.masked_fill(~labelled, IGNORE)
    decoder = torch.cat([torch.full_like(labels[:, :1], tokenizer.pad), labels[:, :-1].clamp(min=0)], 1)
    memory = [(k.expand(len(choices), -1, -1, -1), v.expand(len(choices), -1, -1, -1))
              for k, v in model.memory(model.encode(ids, mask))]  # fmt: skip
    hidden, _ = model.decode(decoder, memory, mask.expand(len(choices), -1))
    logits = model.logits(hidden).transpose(1, 2)
    losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    # The sentinel every choice starts with says nothing about the choice: it is left out of the mean.
    return (losses[:, 1:].sum(-1) / labelled[:, 1:].sum(-1)).tolist()


def _pad(rows: list[list[int]], pad: int, model: OpenBAModel) -> tuple[Tensor, Tensor]:
    """Right-padded ids `[B, S]` and the mask of real tokens."""
    device = model.embedding.weight.device
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]
