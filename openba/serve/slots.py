"""Rows that are decoded together though each began at another time: caches of fixed size, and one step.

Owns the memory of the rows, their joining and leaving. `openba.model.decoding` answers rows that begin
together; its `Session` encodes the rows that join. When rows join and what is written is `engine.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openba.model.decoding import Session
from openba.model.seq2seq import Seq2Seq
from openba.model.step import make_step


class Slots:
    """At most `count` rows; those in use are the first `len(slots)`, in no particular order."""

    def __init__(self, model: Seq2Seq, count: int, start: Sequence[int]) -> None:
        """Reserve the memory, so that no request can fail for lack of it later.

        Args:
            model: in evaluation mode.
            count: rows at most.
            start: the decoder's first tokens, the same for all rows.
        """
        shape, weight = model.architecture, model.shared_embedding.weight
        self.model, self.step, self.start, self.count = model, make_step(model), list(start), count
        heads, layers = (count, shape.num_heads), shape.num_decoder_layers
        # Zeros, since a hidden place still takes part as 0 * value, and 0 * NaN is NaN.
        self.cache = torch.zeros(
            (layers, 2, *heads, shape.decoder_max_seq_length, shape.kv_channels),
            dtype=weight.dtype, device=weight.device,
        )  # fmt: skip
        self.memory = torch.zeros(
            (layers, 2, *heads, shape.max_seq_length, shape.kv_channels),
            dtype=weight.dtype, device=weight.device,
        )  # fmt: skip
        self.sources: list[int] = []
        """Tokens of each row's source."""
        self.filled: list[int] = []
        """Decoder positions of each row that are in the cache."""

    def __len__(self) -> int:
        return len(self.filled)

    @torch.inference_mode()
    def join(self, sources: Sequence[Sequence[int]]) -> Tensor:
        """Encode sources as new rows at the end; returns fp32 logits `[sources, vocab]` of their first token.

        Raises:
            UserError: see `Session`. No row has joined then.
        """
        session = Session(self.model, sources, len(self.start))
        ids = torch.tensor([self.start] * len(sources), device=self.cache.device)
        logits = session.logits(ids)
        begin, end = len(self), len(self) + len(sources)
        self.cache[:, :, begin:end, :, : len(self.start)] = session.attention.cache
        known = session.attention.memory
        self.memory[:, :, begin:end, :, : known.shape[4]] = known
        self.sources += [len(source) for source in sources]
        self.filled += [len(self.start)] * len(sources)
        return logits

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int]) -> Tensor:
        """Feed one token a row; returns fp32 logits `[rows, vocab]` of what follows."""
        ids = torch.tensor(tokens, device=self.cache.device)
        hidden = self.step(ids, self.filled, self.cache, self.memory, self.sources)
        self.filled = [position + 1 for position in self.filled]
        return self.step.logits(hidden)

    @torch.inference_mode()
    def leave(self, row: int, clear: bool = False) -> int:
        """Free a row; the last one takes its place. Returns which row that was.

        Args:
            row: the row that leaves.
            clear: also zero its memory, which may hold NaN: the next row in this slot attends to all of it,
                to what is hidden with weight 0, and 0 * NaN is NaN.
        """
        last = len(self) - 1
        if clear:
            self.cache[:, :, row] = 0
            self.memory[:, :, row] = 0
        if row != last:
            # Memory behind a row's own tokens is hidden, so only they need to move.
            self.cache[:, :, row, :, : self.filled[last]] = self.cache[:, :, last, :, : self.filled[last]]
            self.memory[:, :, row, :, : self.sources[last]] = self.memory[:, :, last, :, : self.sources[last]]
            self.filled[row], self.sources[row] = self.filled[last], self.sources[last]
        self.filled.pop()
        self.sources.pop()
        return last
