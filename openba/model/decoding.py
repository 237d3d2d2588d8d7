"""Decoding position by position with preallocated caches: the base of generation and scoring.

Owns `Session`, the greedy loop, and the removal of finished rows. Caches and the attention over them are
`caches.py`'s, one position is `step.py`'s; text, prompts and answers are `generate.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from openba.errors import UserError
from openba.model.blocks import DecoderBlock
from openba.model.caches import decode_new_tokens
from openba.model.rows import Rows, first
from openba.model.seq2seq import Seq2Seq, check_ids
from openba.model.step import make_step
from openba.recipes.architecture import Architecture


@dataclass(frozen=True)
class Written:
    """The tokens of one step."""

    rows: list[int]
    """Numbers of the sources that are still being answered."""
    tokens: list[int]
    """The token that each of them got."""


class Session:
    """Answers to several sources at once, and their caches."""

    def __init__(self, model: Seq2Seq, sources: Sequence[Sequence[int]], positions: int) -> None:
        """Encode the sources.

        Args:
            model: In evaluation mode.
            sources: Wrapped encoder ids, one sequence each, of any lengths.
            positions: Decoder positions at most.

        Raises:
            UserError: an empty source, an id outside the vocabulary, more tokens than the model has
                positions.
        """
        limit = model.architecture.decoder_max_seq_length
        if positions > limit:
            raise UserError(
                f"max_new_tokens: {positions} decoder positions are more than the model's {limit}"
            )
        check_sources(model.architecture, sources)
        source_ids, source_mask = pad(sources, model.shared_embedding.weight.device)
        source_rows = Rows.ragged(source_mask)
        encoder_output = model.encode(source_rows.flat(source_ids), source_rows)
        architecture = model.architecture
        layers = architecture.num_decoder_layers
        heads = architecture.num_heads
        self.model = model
        self.step = make_step(model)
        self.source_lengths = list(source_rows.lengths)
        self.filled = 0
        """Decoder positions whose keys and values are in `self_cache`."""
        self.self_cache = encoder_output.new_empty(
            (layers, 2, len(sources), heads, positions, architecture.kv_channels)
        )
        """`[layers, 2, rows, heads, positions, kv]`: keys and values of the decoder's own tokens."""
        self.cross_cache = encoder_output.new_empty(
            (layers, 2, len(sources), heads, source_ids.shape[1], architecture.kv_channels)
        )
        """`[layers, 2, rows, heads, source, kv]`: keys and values of the sources."""
        # Keys and values of the sources depend on no decoder token: computed once, read at every position.
        for layer_cache, block in zip(self.cross_cache, model.decoder.block, strict=True):
            keys_and_values = cast(DecoderBlock, block).inter_attn.memory(encoder_output)
            for cached, tokens in zip(layer_cache, keys_and_values, strict=True):
                cached.copy_(source_rows.grid(tokens, source_ids.shape[1]).transpose(1, 2))

    def advance(self, ids: Tensor) -> Tensor:
        """Feed int64 `[rows, new]`; returns hidden states `[rows, new, hidden]`."""
        row_count, new_tokens = ids.shape
        positions = [self.filled] * row_count
        # A device kind's own step handles one new token a row only.
        if new_tokens == 1 and self.filled:
            hidden_states = self.step(
                ids[:, 0], positions, self.self_cache, self.cross_cache, self.source_lengths
            )[:, None]
        else:
            hidden_states = decode_new_tokens(
                self.model, ids, positions, self.self_cache, self.cross_cache, self.source_lengths
            )
        self.filled += new_tokens
        return hidden_states

    def logits(self, ids: Tensor) -> Tensor:
        """Feed int64 `[rows, new]`; returns fp32 logits `[rows, vocab]` of the next token."""
        return self.step.logits(self.advance(ids)[:, -1])

    def select_rows(self, row_numbers: Tensor) -> None:
        """Keep only these rows, in this order, and drop the padding that only others needed."""
        self.source_lengths = [self.source_lengths[row] for row in row_numbers.tolist()]
        self.cross_cache = self.cross_cache[..., : max(self.source_lengths), :].index_select(2, row_numbers)
        self.self_cache = self.self_cache.index_select(2, row_numbers)


@torch.inference_mode()
def greedy(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    start_tokens: Sequence[int],
    end_token: int,
    used_vocab: int,
    max_new_tokens: int,
) -> Iterator[Written]:
    """Write the likeliest token of each source, step by step, until each has ended or the limit is reached.

    Args:
        model: In evaluation mode.
        sources: Wrapped encoder ids.
        start_tokens: The decoder's first tokens.
        end_token: The token that ends a row; it is yielded, too.
        used_vocab: Ids of the tokenizer; the vocabulary's padding rows beyond are never written.
        max_new_tokens: New tokens of each row at most.
    """
    session = Session(model, sources, len(start_tokens) + max_new_tokens)
    device = model.shared_embedding.weight.device
    rows = list(range(len(sources)))
    ids = torch.tensor([list(start_tokens)] * len(rows), device=device)
    for _ in range(max_new_tokens):
        next_ids = session.logits(ids)[:, :used_vocab].argmax(-1)
        tokens = next_ids.tolist()
        yield Written(rows, tokens)
        unfinished = [row for row, token in enumerate(tokens) if token != end_token]
        if not unfinished:
            return
        # A finished row would cost a step's time until the longest answer of its batch has ended.
        if len(unfinished) < len(rows):
            row_numbers = torch.tensor(unfinished, device=device)
            session.select_rows(row_numbers)
            rows = [rows[row] for row in unfinished]
            next_ids = next_ids[row_numbers]
        ids = next_ids[:, None]


def check_sources(architecture: Architecture, sources: Sequence[Sequence[int]]) -> None:
    """Refuse sources that the model cannot read.

    Raises:
        UserError: an empty source, an id outside the vocabulary, more tokens than positions; names the row.
    """
    limit = architecture.max_seq_length
    for row, source in enumerate(sources):
        if len(source) > limit:
            raise UserError(
                f"source row {row}: {len(source)} tokens are more than the model's {limit} positions"
            )
    try:
        check_ids(*pad(sources, torch.device("cpu")), architecture.vocab_size, "source")
    except ValueError as error:
        raise UserError(str(error)) from None


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return right-padded ids `[rows, width]` and the mask of real tokens."""
    width = max(len(row) for row in rows)
    padded_rows = [[*row, *([0] * (width - len(row)))] for row in rows]
    padded_ids = torch.tensor(padded_rows, dtype=torch.int64, device=device)
    return padded_ids, first(torch.tensor([len(row) for row in rows], device=device), width)
