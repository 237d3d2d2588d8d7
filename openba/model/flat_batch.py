"""A micro-batch as the model computes it: real tokens one after the other, and the layout of their rows.

Owns the way from padded grids of ids to that form, and the checks of ids. Made on the host, where lengths and
ids are known, so that the model never has to ask a device for them: `to` copies without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openba.model.loss import IGNORE
from openba.model.rows import Rows, first
from openba.model.seq2seq import check_vocabulary


@dataclass(frozen=True)
class FlatBatch:
    """Tokens of some samples; all tensors are int64 on one device."""

    encoder_ids: Tensor
    """`[source tokens]`, laid out by `source_rows`."""
    source_rows: Rows
    decoder_ids: Tensor
    """`[target tokens]`, laid out by `target_rows`."""
    target_rows: Rows
    labelled: Tensor
    """`[labels]`: index of each token with a label in the target tokens."""
    labels: Tensor
    """`[labels]`: its label."""
    label_rows: Tensor
    """`[labels]`: its row."""

    @classmethod
    def lay_out(
        cls,
        encoder_ids: Tensor,
        mask: Tensor,
        decoder_ids: Tensor,
        labels: Tensor,
        *,
        vocab: int,
        padded: bool = False,
    ) -> FlatBatch:
        """Lay out grids that are in host memory; of a device, each step would wait for it.

        Args:
            encoder_ids: int64 `[rows, source]`.
            mask: bool, the same shape, True for a real token.
            decoder_ids: int64 `[rows, target]`.
            labels: int64, the same shape, IGNORE where there is no loss.
            vocab: Rows of the model's embedding.
            padded: Keep padding, as other implementations do. For comparison: the loss is the same.

        Raises:
            ValueError: an id outside the vocabulary; names the row.
        """
        # On CUDA an id outside the table is a device-side assert, which ends the process; a CPU names no row.
        check_vocabulary(encoder_ids, vocab, "encoder_ids")
        check_vocabulary(decoder_ids, vocab, "decoder_ids")
        check_vocabulary(labels.masked_fill(labels == IGNORE, 0), vocab, "labels")
        make_layout = Rows.padded if padded else Rows.ragged
        source_rows = make_layout(mask)
        target_rows = make_layout(first(_used_positions(labels), labels.shape[1]))
        flat_labels = target_rows.flat(labels)
        # Only labelled positions reach the head: padding would be half of its work (Table 3's lengths).
        labelled = (flat_labels != IGNORE).nonzero().squeeze(-1)
        return cls(
            encoder_ids=source_rows.flat(encoder_ids),
            source_rows=source_rows,
            decoder_ids=target_rows.flat(decoder_ids),
            target_rows=target_rows,
            labelled=labelled,
            labels=flat_labels[labelled],
            label_rows=(labels != IGNORE).nonzero()[:, 0],
        )

    def to(self, device: torch.device) -> FlatBatch:
        """Return the batch on `device`; the copies are waited for by what reads them, not by the host."""
        return FlatBatch(
            encoder_ids=_moved(self.encoder_ids, device),
            source_rows=self.source_rows.to(device),
            decoder_ids=_moved(self.decoder_ids, device),
            target_rows=self.target_rows.to(device),
            labelled=_moved(self.labelled, device),
            labels=_moved(self.labels, device),
            label_rows=_moved(self.label_rows, device),
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    # Only a copy from pinned memory goes on by itself.
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def _used_positions(labels: Tensor) -> Tensor:
    """Positions of each row up to its last label, int64 `[rows]`, at least 1; the rest has no effect."""
    positions = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return ((labels != IGNORE) * positions).amax(-1).clamp_(min=1)
