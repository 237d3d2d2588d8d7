"""Rows that are decoded together though each began at another time: caches of fixed size, and one step.

Owns the memory of the rows, their joining and leaving. `openba.model.decoding` answers rows that begin
together; its `Session` encodes the rows that join. When rows join and what is written is `engine.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openba.model.decoding import Session
from openba.model.rows import first
from openba.model.seq2seq import Seq2Seq
from openba.model.step import Step, few_rows_linear


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
        self.model, self.step, self.start, self.count = model, Step(model), list(start), count
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
        for layer, pair in enumerate(session.attention.memory):
            for which, tensor in enumerate(pair):
                self.memory[layer, which, begin:end, :, : tensor.shape[2]] = tensor
        self.sources += [len(source) for source in sources]
        self.filled += [len(self.start)] * len(sources)
        return logits

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int]) -> Tensor:
        """Feed one token a row; returns fp32 logits `[rows, vocab]` of what follows."""
        device, rows = self.cache.device, len(self)
        positions = torch.tensor(self.filled, device=device)
        width, reach = max(self.filled) + 1, max(self.sources)
        cache = self.cache[:, :, :rows, :, :width]
        memory = [(pair[0], pair[1]) for pair in self.memory[:, :, :rows, :, :reach]]
        hidden = self.step(
            torch.tensor(tokens, device=device), positions, cache, memory,
            self._hide(torch.tensor(self.sources, device=device), reach), self._hide(positions + 1, width),
        )  # fmt: skip
        self.filled = [position + 1 for position in self.filled]
        return few_rows_linear(hidden, self.model.head_weight, self.model.lm_head.bias).float()

    def leave(self, row: int) -> int:
        """Free a row; the last one takes its place. Returns which row that was."""
        last = len(self) - 1
        if row != last:
            # Memory behind a row's own tokens is hidden, so only they need to move.
            self.cache[:, :, row, :, : self.filled[last]] = self.cache[:, :, last, :, : self.filled[last]]
            self.memory[:, :, row, :, : self.sources[last]] = self.memory[:, :, last, :, : self.sources[last]]
            self.filled[row], self.sources[row] = self.filled[last], self.sources[last]
        self.filled.pop()
        self.sources.pop()
        return last

    def _hide(self, lengths: Tensor, width: int) -> Tensor | None:
        mask = first(lengths, width)
        if bool(mask.all()):
            return None
        bias = torch.zeros(mask.shape, dtype=self.cache.dtype, device=self.cache.device)
        return bias.masked_fill_(~mask, -torch.inf)[:, None, None]
