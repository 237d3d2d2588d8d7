"""Fixed-size key/value caches for rows that start and end at different times, and one decoder step over them.

Owns the memory of the rows and the adding and removing of rows. `openba.model.decoding` decodes rows that
start together; its `Session` encodes the sources of new rows here. `decoding_engine.py` decides when a row is
added and which token it gets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openba.model.adapter_bank import NO_ADAPTER, AdapterBank
from openba.model.decoding import Session
from openba.model.seq2seq import Seq2Seq
from openba.model.step import make_step


class RowCache:
    """Caches of at most `max_rows` rows; the active ones are the first `len(cache)`, in any order."""

    def __init__(
        self, model: Seq2Seq, max_rows: int, start_ids: Sequence[int], bank: AdapterBank | None = None
    ) -> None:
        """Allocate all memory now, so that no request can fail for lack of it later.

        Args:
            model: in evaluation mode.
            max_rows: upper limit of active rows.
            start_ids: the decoder's first tokens, the same for all rows.
            bank: adapters in the model's layers, of which rows may have one; None: there are none.
        """
        architecture = model.architecture
        weight = model.shared_embedding.weight
        self.model = model
        self.step = make_step(model)
        self.bank = bank
        self.row_adapters: list[int] = []
        """Number of each row's adapter."""
        self.start_ids = list(start_ids)
        self.max_rows = max_rows
        # Zeros rather than uninitialised memory: a masked position still takes part in attention as
        # 0 * value, and 0 * NaN is NaN.
        self.self_attention = torch.zeros(
            (
                architecture.num_decoder_layers,
                2,
                max_rows,
                architecture.num_heads,
                architecture.decoder_max_seq_length,
                architecture.kv_channels,
            ),
            dtype=weight.dtype,
            device=weight.device,
        )
        """Keys and values of decoder positions, `[layers, 2, rows, heads, positions, kv]`."""
        self.cross_attention = torch.zeros(
            (
                architecture.num_decoder_layers,
                2,
                max_rows,
                architecture.num_heads,
                architecture.max_seq_length,
                architecture.kv_channels,
            ),
            dtype=weight.dtype,
            device=weight.device,
        )
        """Keys and values of source positions, `[layers, 2, rows, heads, positions, kv]`."""
        self.source_lengths: list[int] = []
        """Number of source tokens per row."""
        self.decoder_lengths: list[int] = []
        """Number of decoder positions per row that are in the cache."""

    def __len__(self) -> int:
        return len(self.decoder_lengths)

    @torch.inference_mode()
    def add_rows(self, sources: Sequence[Sequence[int]], adapters: Sequence[int] | None = None) -> Tensor:
        """Encode sources as new rows at the end; returns fp32 logits `[sources, vocab]` of their first token.

        Args:
            sources: wrapped encoder ids.
            adapters: number of each source's adapter; None: the base answers all.

        Raises:
            UserError: see `Session`. No row was added.
        """
        row_adapters = [NO_ADAPTER] * len(sources) if adapters is None else list(adapters)
        self._select(row_adapters, [len(source) for source in sources])
        session = Session(self.model, sources, len(self.start_ids))
        self._select(row_adapters, [len(self.start_ids)] * len(sources))
        start_ids = torch.tensor([self.start_ids] * len(sources), device=self.self_attention.device)
        logits = session.logits(start_ids)
        first_row = len(self)
        end_row = first_row + len(sources)
        self.self_attention[:, :, first_row:end_row, :, : len(self.start_ids)] = session.self_cache
        source_kv = session.cross_cache
        self.cross_attention[:, :, first_row:end_row, :, : source_kv.shape[4]] = source_kv
        # Updated last: after an error in encoding the rows are free as before.
        self.row_adapters += row_adapters
        self.source_lengths += [len(source) for source in sources]
        self.decoder_lengths += [len(self.start_ids)] * len(sources)
        return logits

    @torch.inference_mode()
    def decode_step(self, tokens: Sequence[int]) -> Tensor:
        """Feed one token per row; returns fp32 logits `[rows, vocab]` of the following token."""
        token_ids = torch.tensor(tokens, device=self.self_attention.device)
        self._select(self.row_adapters, [1] * len(tokens))
        hidden = self.step(
            token_ids, self.decoder_lengths, self.self_attention, self.cross_attention, self.source_lengths
        )
        self.decoder_lengths = [length + 1 for length in self.decoder_lengths]
        return self.step.logits(hidden)

    @torch.inference_mode()
    def remove_row(self, row: int, clear: bool = False) -> int:
        """Free a row by moving the last row into it; returns the old index of the moved row.

        Args:
            row: index of the row to free.
            clear: also zero its memory, which may hold NaN: the next row stored here attends to all
                positions, to masked ones with weight 0, and 0 * NaN is NaN.
        """
        last_row = len(self) - 1
        if clear:
            self.self_attention[:, :, row] = 0
            self.cross_attention[:, :, row] = 0
        if row != last_row:
            # Positions after a row's last token are masked, so only the used ones are copied.
            decoder_length = self.decoder_lengths[last_row]
            source_length = self.source_lengths[last_row]
            last_self = self.self_attention[:, :, last_row, :, :decoder_length]
            last_cross = self.cross_attention[:, :, last_row, :, :source_length]
            self.self_attention[:, :, row, :, :decoder_length] = last_self
            self.cross_attention[:, :, row, :, :source_length] = last_cross
            self.row_adapters[row] = self.row_adapters[last_row]
            self.decoder_lengths[row] = decoder_length
            self.source_lengths[row] = source_length
        self.row_adapters.pop()
        self.decoder_lengths.pop()
        self.source_lengths.pop()
        return last_row

    def _select(self, row_adapters: Sequence[int], tokens_per_row: Sequence[int]) -> None:
        if self.bank is not None:
            self.bank.select(row_adapters, tokens_per_row, self.self_attention.device)
