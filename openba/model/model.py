"""The model as the trainer sees it: a padded batch in, one loss out. Plain torch, no transformers.

Owns how a batch becomes rows and which positions carry loss. Decoding is `generate.py`'s, files are
`files.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from openba.recipes.architecture import Architecture, Recompute

from .blocks import EncoderBlock, FullAttention
from .loss import linear_cross_entropy
from .rows import Rows, first
from .seq2seq import Seq2Seq, begin, check_vocabulary

IGNORE = -100
"""Label of positions that carry no loss."""


class OpenBAModel(Seq2Seq):
    """Encoder ids and decoder ids to a loss. Under `torch.device("meta")` without memory and values."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        device = torch.get_default_device()
        with torch.device("meta"):  # torch's own initial values would be drawn for nothing
            self._build(architecture, tied_head_is_shared=False)
        for module in self.modules() if device.type != "meta" else ():
            begin(module, architecture.initializer_range, device)
        self.recompute_attention = False
        self.stream: int | None = None
        self.cross_entropy: Callable[..., Tensor] = linear_cross_entropy
        """Of hidden states and labels; another where the vocabulary lies on several ranks."""
        self.each = torch.zeros(2, 0)
        """Of the last forward pass, row after row: each target token's loss, and without gradients whether it
        is the likeliest. For figures by sample; no gradient."""

    def forward(
        self,
        encoder_ids: Tensor,
        mask: Tensor,
        decoder_ids: Tensor,
        labels: Tensor,
        padded: bool = False,
    ) -> Tensor:
        """Cross entropy summed over all labelled positions: an fp32 scalar.

        Args:
            encoder_ids: int64 `[rows, source]`.
            mask: bool, the same shape, True for a real token.
            decoder_ids: int64 `[rows, target]`.
            labels: int64, the same shape, IGNORE where there is no loss.
            padded: Compute padding too, as other implementations do. For comparison: the loss is the same.

        Raises:
            ValueError: an id outside the vocabulary, more tokens than positions; names the row.
        """
        targets = labels.masked_fill(labels == IGNORE, 0)
        for what, ids in (("encoder_ids", encoder_ids), ("decoder_ids", decoder_ids), ("labels", targets)):
            check_vocabulary(ids, self.architecture.vocab_size, what)
        layout = Rows.padded if padded else Rows.ragged
        source = layout(mask)
        target = layout(first(_used(labels), labels.shape[1]))
        hidden = self.hidden(encoder_ids, source, decoder_ids, target)
        flat = target.flat(labels)
        # Only labelled positions reach the head: padding would be half of its work (Table 3's lengths).
        labelled = (flat != IGNORE).nonzero().squeeze(-1)
        self.each = torch.zeros(2, len(labelled), device=flat.device)
        return self.cross_entropy(
            hidden.index_select(0, labelled), self.head_weight, self.lm_head.bias, flat[labelled], self.each
        )

    def hidden(self, encoder_ids: Tensor, source: Rows, decoder_ids: Tensor, target: Rows) -> Tensor:
        """Hidden states `[target tokens, hidden]` of grids of ids laid out by `source` and `target`."""
        encoded = self.encode(source.flat(encoder_ids), source)
        dropout = self.architecture.attention_dropout if self.training else 0.0
        recompute = self.recompute_attention and self.training
        attention = FullAttention(target, encoded, source, dropout, self.stream, recompute)
        return self.decode(target.flat(decoder_ids), target, attention)

    def share_heads(self, rank: int | None) -> None:
        """Heads lie on several ranks: attention's dropout draws the numbers of this one (see `attend`)."""
        self.stream = rank
        for block in self.encoder.block:
            cast(EncoderBlock, block).stream = rank

    def recompute(self, kind: Recompute) -> None:
        """What the backward pass computes again instead of keeping it; gradients stay the same bit by bit.

        `attention`: scores and softmax (paper section 3.4). `selective`: all of a block but its matrix
        products and attention. `full`: each block whole, whose input alone is kept.
        """
        self.recompute_attention = kind == "attention"
        for block in self.encoder.block:
            cast(EncoderBlock, block).recompute_attention = kind == "attention"
        for stack in (self.encoder, self.decoder):
            stack.gradient_checkpointing = kind in ("selective", "full")
            stack.keeps_products = kind == "selective"


def _used(labels: Tensor) -> Tensor:
    """Positions of each row up to its last label; what follows has no effect. At least one."""
    ends = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return ((labels != IGNORE) * ends).amax(-1).clamp_(min=1)
