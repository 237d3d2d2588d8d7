"""Model as the trainer sees it: a padded batch in, one loss out. Plain torch, no transformers.

Owns how a batch becomes rows and which positions carry loss. Decoding is `generate.py`'s, files are
`files.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from openba.model.blocks import EncoderBlock, FullAttention
from openba.model.loss import IGNORE, linear_cross_entropy
from openba.model.rows import Rows, first
from openba.model.seq2seq import Seq2Seq, begin, check_vocabulary
from openba.recipes.architecture import Architecture, Recompute


class OpenBAModel(Seq2Seq):
    """Encoder ids and decoder ids to a loss. Under `torch.device("meta")` without memory and values."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        device = torch.get_default_device()
        with torch.device("meta"):  # torch's own initial values would be drawn in vain
            self._build(architecture, tied_head_is_shared=False)
        for module in self.modules() if device.type != "meta" else ():
            begin(module, architecture.initializer_range, device)
        self.recompute_attention = False
        self.dropout_stream: int | None = None
        self.cross_entropy: Callable[..., Tensor] = linear_cross_entropy
        """Loss of hidden states and labels; another where the vocabulary lies on several ranks."""
        self.token_scores = torch.zeros(2, 0)
        """fp32 `[2, target tokens]` of the last forward pass, row after row: each token's loss, and without
        gradients whether it is the likeliest. For figures by sample; no gradient."""

    def forward(
        self,
        encoder_ids: Tensor,
        mask: Tensor,
        decoder_ids: Tensor,
        labels: Tensor,
        padded: bool = False,
        gradient_scale: float = 1.0,
    ) -> Tensor:
        """Cross entropy summed over all labelled positions: an fp32 scalar.

        Args:
            encoder_ids: int64 `[rows, source]`.
            mask: bool, the same shape, True for a real token.
            decoder_ids: int64 `[rows, target]`.
            labels: int64, the same shape, IGNORE where there is no loss.
            padded: Compute padding too, as other implementations do. For comparison: the loss is the same.
            gradient_scale: What the caller will multiply the loss by, see `linear_cross_entropy`.

        Raises:
            ValueError: an id outside the vocabulary, more tokens than positions; names the row.
        """
        # On CUDA an id outside the table is a device-side assert, which ends the process; a CPU names no row.
        vocab_size = self.architecture.vocab_size
        check_vocabulary(encoder_ids, vocab_size, "encoder_ids")
        check_vocabulary(decoder_ids, vocab_size, "decoder_ids")
        check_vocabulary(labels.masked_fill(labels == IGNORE, 0), vocab_size, "labels")
        make_layout = Rows.padded if padded else Rows.ragged
        source_rows = make_layout(mask)
        target_rows = make_layout(first(_used_positions(labels), labels.shape[1]))
        hidden_states = self.hidden(encoder_ids, source_rows, decoder_ids, target_rows)
        flat_labels = target_rows.flat(labels)
        # Only labelled positions reach the head: padding would be half of its work (Table 3's lengths).
        labelled = (flat_labels != IGNORE).nonzero().squeeze(-1)
        self.token_scores = torch.zeros(2, len(labelled), device=flat_labels.device)
        return self.cross_entropy(
            hidden_states.index_select(0, labelled),
            self.head_weight,
            self.lm_head.bias,
            flat_labels[labelled],
            self.token_scores,
            gradient_scale=gradient_scale,
        )

    def hidden(
        self, encoder_ids: Tensor, source_rows: Rows, decoder_ids: Tensor, target_rows: Rows
    ) -> Tensor:
        """Hidden states `[target tokens, hidden]` of grids of ids in the two layouts."""
        encoder_output = self.encode(source_rows.flat(encoder_ids), source_rows)
        attention = FullAttention(
            target_rows,
            encoder_output,
            source_rows,
            dropout=self.architecture.attention_dropout if self.training else 0.0,
            dropout_stream=self.dropout_stream,
            recompute=self.recompute_attention and self.training,
        )
        return self.decode(target_rows.flat(decoder_ids), target_rows, attention)

    def share_heads(self, rank: int | None) -> None:
        """Draw attention's dropout from this rank's own stream: heads lie on several ranks (see `attend`)."""
        self.dropout_stream = rank
        for block in self.encoder.block:
            cast(EncoderBlock, block).dropout_stream = rank

    def recompute(self, kind: Recompute) -> None:
        """Choose what the backward pass computes again; gradients stay the same bit by bit.

        `attention`: scores and softmax (paper section 3.4). `selective`: all of a block but its matrix
        products and attention. `full`: each block, of which only the input is saved.
        """
        self.recompute_attention = kind == "attention"
        # The decoder's blocks are told by the attention that they are handed, see `hidden`.
        for block in self.encoder.block:
            cast(EncoderBlock, block).recompute_attention = kind == "attention"
        for stack in (self.encoder, self.decoder):
            stack.gradient_checkpointing = kind in ("selective", "full")
            stack.saves_products = kind == "selective"


def _used_positions(labels: Tensor) -> Tensor:
    """Positions of each row up to its last label, int64 `[rows]`, at least 1; the rest has no effect."""
    positions = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return ((labels != IGNORE) * positions).amax(-1).clamp_(min=1)
