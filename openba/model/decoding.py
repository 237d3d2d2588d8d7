"""Decoding position by position with preallocated caches: what generation and scoring stand on.

Owns the caches (self-attention keys and values in fixed memory, cross-attention ones computed once), the
greedy loop, and the removal of finished rows. Text, prompts and answers are `generate.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openba.errors import UserError
from openba.model.blocks import DecoderBlock
from openba.model.layers import CrossAttention
from openba.model.rows import Rows, first
from openba.model.seq2seq import Seq2Seq, check_ids
from openba.model.step import hide, make_step


@dataclass(frozen=True)
class Written:
    """The tokens of one step."""

    rows: list[int]
    """Which of the sources are still being written."""
    tokens: list[int]
    """The token that each of them got."""


class StaticAttention:
    """A decoder's attention over caches of fixed size, `[layers, 2, rows, heads, positions, kv]` each."""

    def __init__(self, model: Seq2Seq, encoded: Tensor, source: Rows, width: int, positions: int) -> None:
        """Args: the encoder's output `[tokens, hidden]`, its rows, their width, decoder positions at most."""
        shape, count = model.architecture, len(source.lengths)
        layers, heads, kv = shape.num_decoder_layers, shape.num_heads, shape.kv_channels
        self.memory = encoded.new_empty((layers, 2, count, heads, width, kv))
        for into, block in zip(self.memory, model.decoder.block, strict=True):
            for part, x in zip(into, cast(DecoderBlock, block).inter_attn.memory(encoded), strict=True):
                part.copy_(source.grid(x, width).transpose(1, 2))
        self.lengths = list(source.lengths)
        self.cache = encoded.new_empty((layers, 2, count, heads, positions, kv))
        self.filled, self.new = 0, 0

    def own(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values and attend to all so far."""
        keys, values = self.cache[layer]
        end = self.filled + self.new
        keys[:, :, self.filled : end] = self._grid(key)
        values[:, :, self.filled : end] = self._grid(value)
        causal = self.new > 1  # only ever at the start, with nothing cached before
        return self._attend(query, keys[:, :, :end], values[:, :, :end], None, causal)

    def cross(self, layer: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the stored keys and values of the source."""
        keys, values = self.memory[layer]
        return self._attend(query, keys, values, hide(self.lengths, keys), False)

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows, and the padding that only the others needed."""
        self.lengths = [self.lengths[row] for row in rows.tolist()]
        self.memory = self.memory[..., : max(self.lengths), :].index_select(2, rows)
        self.cache = self.cache.index_select(2, rows)

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, causal: bool
    ) -> Tensor:
        mixed = F.scaled_dot_product_attention(self._grid(query), keys, values, bias, is_causal=causal)
        return mixed.transpose(1, 2).flatten(0, 1)

    def _grid(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.new)).transpose(1, 2)


class Session:
    """Some sources being answered at once."""

    def __init__(self, model: Seq2Seq, sources: Sequence[Sequence[int]], positions: int) -> None:
        """Encode the sources.

        Args:
            model: in evaluation mode.
            sources: wrapped encoder ids, one sequence each, of any lengths.
            positions: decoder positions at most.

        Raises:
            UserError: an empty source, an id outside the vocabulary, more tokens than the model has
                positions.
        """
        limit = model.architecture.decoder_max_seq_length
        if positions > limit:
            raise UserError(
                f"max_new_tokens: {positions} decoder positions are more than the model's {limit}"
            )
        check_sources(model, sources)
        ids, mask = pad(sources, model.shared_embedding.weight.device)
        rows = Rows.ragged(mask)
        encoded = model.encode(rows.flat(ids), rows)
        self.model, self.attention = model, StaticAttention(model, encoded, rows, ids.shape[1], positions)
        self.step = make_step(model)

    def advance(self, ids: Tensor) -> Tensor:
        """Feed int64 `[rows, new]`; returns hidden states `[rows, new, hidden]`."""
        count, new = ids.shape
        attention = self.attention
        if new == 1 and attention.filled:
            places = [attention.filled] * count
            hidden = self.step(ids[:, 0], places, attention.cache, attention.memory, attention.lengths)
            attention.filled += 1
            return hidden[:, None]
        end = attention.filled + new
        positions = torch.arange(attention.filled, end, device=ids.device).repeat(count)
        attention.new = new
        hidden = self.model.decode(ids.flatten(), Rows((end,) * count, new, positions), attention)
        attention.filled = end
        return hidden.unflatten(0, (count, new))

    def logits(self, ids: Tensor) -> Tensor:
        """Feed int64 `[rows, new]`; returns fp32 logits `[rows, vocab]` of what follows."""
        return self.step.logits(self.advance(ids)[:, -1])


@torch.inference_mode()
def greedy(
    model: Seq2Seq, sources: Sequence[Sequence[int]], start: Sequence[int], eos: int, used: int, limit: int
) -> Iterator[Written]:
    """Write the likeliest token of each source, step by step, until each has ended or `limit` are written.

    Args:
        model: in evaluation mode.
        sources: wrapped encoder ids.
        start: the decoder's first tokens.
        eos: the token that ends a row; it is yielded, too.
        used: ids of the tokenizer; the vocabulary's padding rows beyond are never written.
        limit: new tokens at most.
    """
    session = Session(model, sources, len(start) + limit)
    device = model.shared_embedding.weight.device
    rows = list(range(len(sources)))
    ids = torch.tensor([list(start)] * len(rows), device=device)
    for _ in range(limit):
        following = session.logits(ids)[:, :used].argmax(-1)
        tokens = following.tolist()
        yield Written(rows, tokens)
        going = [i for i, token in enumerate(tokens) if token != eos]
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            session.attention.keep(kept)
            rows, following = [rows[i] for i in going], following[kept]
        ids = following[:, None]


def check_sources(model: Seq2Seq, sources: Sequence[Sequence[int]]) -> None:
    """Refuse what the model cannot read.

    Raises:
        UserError: an empty source, an id outside the vocabulary, more tokens than positions; names the row.
    """
    limit = model.architecture.max_seq_length
    for row, source in enumerate(sources):
        if len(source) > limit:
            raise UserError(
                f"source row {row}: {len(source)} tokens are more than the model's {limit} positions"
            )
    try:
        check_ids(*pad(sources, torch.device("cpu")), model.architecture.vocab_size, "source")
    except ValueError as error:
        raise UserError(str(error)) from None


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids `[rows, width]` and the mask of real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor(
        [[*row, *([0] * (width - len(row)))] for row in rows], dtype=torch.int64, device=device
    )
    return ids, first(torch.tensor([len(row) for row in rows], device=device), width)
