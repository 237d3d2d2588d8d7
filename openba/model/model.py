"""Model as the trainer sees it: a batch in, one loss out. Plain torch, no transformers.

Owns the training loss. How a batch becomes rows and which positions carry loss is `flat_batch.py`'s, decoding
`generate.py`'s, files are `files.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from openba.model.blocks import EncoderAttention, FullAttention, SourceAttention
from openba.model.flat_batch import FlatBatch
from openba.model.loss import linear_cross_entropy
from openba.model.rows import Rows
from openba.model.seq2seq import Seq2Seq, begin
from openba.recipes.architecture import Architecture, Recompute


class OpenBAModel(Seq2Seq):
    """Encoder ids and decoder ids to a loss. Under `torch.device("meta")` without memory and values."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        device = torch.get_default_device()
        self.architecture = architecture
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

    def forward(self, batch: FlatBatch, gradient_scale: Tensor | None = None) -> Tensor:
        """Cross entropy summed over all labelled positions: an fp32 scalar.

        The host reads nothing from the device of `batch`.

        Args:
            batch: On the weights' device.
            gradient_scale: What the caller will multiply the loss by, see `linear_cross_entropy`.

        Raises:
            ValueError: more tokens than positions; names the row.
        """
        hidden_states = self._flat_hidden(
            batch.encoder_ids, batch.source_rows, batch.decoder_ids, batch.target_rows
        )
        self.token_scores = torch.zeros(2, len(batch.labelled), device=hidden_states.device)
        return self.cross_entropy(
            hidden_states.index_select(0, batch.labelled),
            self.head_weight,
            self.lm_head.bias,
            batch.labels,
            self.token_scores,
            gradient_scale=gradient_scale,
        )

    def loss(
        self, encoder_ids: Tensor, mask: Tensor, decoder_ids: Tensor, labels: Tensor, padded: bool = False
    ) -> Tensor:
        """Return `forward`'s loss of padded grids, see `FlatBatch.lay_out`."""
        vocab = self.architecture.vocab_size
        return self(FlatBatch.lay_out(encoder_ids, mask, decoder_ids, labels, vocab=vocab, padded=padded))

    def hidden(
        self, encoder_ids: Tensor, source_rows: Rows, decoder_ids: Tensor, target_rows: Rows
    ) -> Tensor:
        """Hidden states `[target tokens, hidden]` of grids of ids in the two layouts."""
        source_ids, target_ids = source_rows.flat(encoder_ids), target_rows.flat(decoder_ids)
        return self._flat_hidden(source_ids, source_rows, target_ids, target_rows)

    def _flat_hidden(
        self, encoder_ids: Tensor, source_rows: Rows, decoder_ids: Tensor, target_rows: Rows
    ) -> Tensor:
        """Return hidden states of ids whose rows are laid out."""
        attention = FullAttention(
            target_rows,
            self.encode(encoder_ids, source_rows),
            source_rows,
            dropout=self.architecture.attention_dropout if self.training else 0.0,
            dropout_stream=self.dropout_stream,
            recompute=self.recompute_attention and self.training,
        )
        return self.decode(decoder_ids, target_rows, attention)

    def _source_attention(self, rows: Rows) -> EncoderAttention:
        return SourceAttention(
            rows,
            dropout=self.architecture.attention_dropout if self.training else 0.0,
            dropout_stream=self.dropout_stream,
            recompute=self.recompute_attention and self.training,
        )

    def share_heads(self, rank: int | None) -> None:
        """Draw attention's dropout from this rank's own stream: heads lie on several ranks (see `attend`)."""
        self.dropout_stream = rank

    def compile_blocks(self, backend: str | Callable[..., object] = "inductor") -> None:
        """Compile the blocks for any rows: two graphs a stack and mode, which all of its blocks share.

        For CUDA: the CPU's kernels are written by hand already.
        """
        for stack in (self.encoder, self.decoder):
            stack.compile_blocks(backend)

    def recompute(self, kind: Recompute) -> None:
        """Choose what the backward pass computes again; gradients stay the same bit by bit.

        `attention`: scores and softmax (paper section 3.4). `selective`: all of a block but its matrix
        products and attention. `full`: each block, of which only the input is saved.
        """
        self.recompute_attention = kind == "attention"
        for stack in (self.encoder, self.decoder):
            stack.gradient_checkpointing = kind in ("selective", "full")
            stack.saves_products = kind == "selective"
