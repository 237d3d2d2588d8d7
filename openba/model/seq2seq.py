"""Encoder-decoder as modules: embedding, two stacks, head, initial values, input checks.

Owns what every form of the model shares. `model.py` adds the training loss, `modeling_openba.py`
transformers' interface. Names of weights are the released checkpoints' (`shared_embedding.weight`,
`encoder.block.0...`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openba.model.blocks import Decoder, DecoderAttention, Encoder, EncoderAttention, SourceAttention
from openba.model.functions import rotary_table
from openba.model.kernels import kernels_for
from openba.model.rows import Rows
from openba.recipes.architecture import Architecture


class Seq2Seq(nn.Module):
    """Encoder ids and decoder ids to hidden states and logits, in either layout of rows."""

    architecture: Architecture

    def _build(self, architecture: Architecture, *, tied_head_is_shared: bool) -> None:
        """Make the modules. A tied head has no weight, unless `tied_head_is_shared` asks for one to tie."""
        vocab_size = architecture.vocab_size
        hidden_size = architecture.hidden_size
        self.shared_embedding = nn.Embedding(vocab_size, hidden_size)
        self.encoder = Encoder(architecture)
        self.decoder = Decoder(architecture)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=architecture.add_lm_head_bias)
        if architecture.tie_word_embeddings and not tied_head_is_shared:
            self.lm_head.register_parameter("weight", None)
        self._rotary: Tensor | None = None

    def encode(self, ids: Tensor, rows: Rows) -> Tensor:
        """Ids `[tokens]` to the encoder's output `[tokens, hidden]`."""
        rotary_angles = self._angles(rows, self.architecture.max_seq_length, "input")
        return self.encoder(self.embed(ids), rotary_angles, self._source_attention(rows))

    def decode(self, ids: Tensor, rows: Rows, attention: DecoderAttention) -> Tensor:
        """Ids `[tokens]` to hidden states `[tokens, hidden]`."""
        # Its own limit: the release's decoder has fewer positions than the encoder.
        rotary_angles = self._angles(rows, self.architecture.decoder_max_seq_length, "decoder input")
        return self.decoder(self.embed(ids), rotary_angles, attention)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids `[tokens]` to embeddings `[tokens, hidden]`, scaled as the architecture says."""
        scale = self.architecture.embedding_scale
        # Scaled here and not in the weight: a tied head reads the same weight unscaled.
        embedded = self.shared_embedding(ids)
        return embedded if scale == 1.0 else embedded * scale

    def logits(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` to fp32 `[..., vocab]`; a tied head is unscaled, as in the release's training."""
        linear = kernels_for(hidden_states.device).linear
        return linear(hidden_states, self.head_weight, self.lm_head.bias).float()

    def _source_attention(self, rows: Rows) -> EncoderAttention:
        """Attention of the encoder's tokens in a layout."""
        return SourceAttention(rows, self.architecture.attention_dropout if self.training else 0.0)

    @property
    def head_weight(self) -> Tensor:
        """`[vocab, hidden]`: the embedding's, if the head is tied."""
        tied = self.architecture.tie_word_embeddings
        return self.shared_embedding.weight if tied else self.lm_head.weight

    def _angles(self, rows: Rows, position_limit: int, input_name: str) -> Tensor:
        """fp32 cosines and sines `[2, tokens, 1, kv / 2]` at the rows' positions."""
        for row, length in enumerate(rows.lengths):
            if length > position_limit:
                raise ValueError(
                    f"{input_name} row {row}: {length} tokens are more than the model's {position_limit} "
                    "positions"
                )
        return self.rotary_angles(rows.positions.device).index_select(1, rows.positions)

    def rotary_angles(self, device: torch.device) -> Tensor:
        """fp32 `[2, positions, 1, kv / 2]` on a device."""
        # Not a buffer: an engine that casts the module to bf16 would cast the angles with it
        # (the released training code lost precision that way, its inference code did not).
        shape = self.architecture
        length = max(shape.max_seq_length, shape.decoder_max_seq_length)
        if self._rotary is None or self._rotary.device != device or self._rotary.shape[1] < length:
            with torch.inference_mode(False):  # made while generating, it must serve training as well
                self._rotary = rotary_table(length, shape.kv_channels, shape.rope_theta, device)
        return self._rotary


@torch.no_grad()
def begin(module: nn.Module, std: float, device: torch.device) -> None:
    """Give a module on the meta device memory and its initial values; its children are not entered.

    Args: as `initialise`; `device` is where.
    """
    module.to_empty(device=device, recurse=False)
    # Biases 0 and norms 1 first; matrices are overwritten by draws.
    for name, parameter in module.named_parameters(recurse=False):
        parameter.fill_(name == "weight")  # a norm's; others are drawn
    initialise(module, std)


@torch.no_grad()
def initialise(module: nn.Module, std: float, normal: Callable[..., object] = nn.init.normal_) -> None:
    """Weights N(0, std), residual projections N(0, std / sqrt(2 * depth)), biases 0; norms keep 1 and 0.

    The release scales by its encoder's depth in both stacks; each stack's own depth is used here.

    Args:
        module: one module, its children are not entered.
        std: `Architecture.initializer_range`.
        normal: What draws, so that transformers' own can be used, which spares loaded weights.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        if module.weight is not None:
            normal(module.weight, mean=0.0, std=std * getattr(module, "residual_scale", 1.0))
        if getattr(module, "bias", None) is not None:
            normal(module.bias, mean=0.0, std=0.0)


def check_ids(ids: Tensor, mask: Tensor, vocab: int, input_name: str) -> None:
    """Refuse what would give a meaningless answer: an empty row, or ids outside the vocabulary.

    Args:
        ids: int64 `[rows, width]`.
        mask: bool, the same shape, True for a real token.
        vocab: rows of the embedding.
        input_name: Name of the ids in the message.

    Raises:
        ValueError: names the row, and the id.
    """
    check_vocabulary(ids, vocab, input_name)
    check_rows(mask, input_name)


def check_rows(mask: Tensor, input_name: str) -> None:
    """Refuse a row without tokens.

    Raises:
        ValueError: names the row.
    """
    empty_rows = (~mask.any(-1)).nonzero()
    if len(empty_rows):
        row = int(empty_rows[0])
        raise ValueError(f"{input_name} row {row}: nothing but padding; give at least one token")


def check_vocabulary(ids: Tensor, vocab: int, input_name: str) -> None:
    """Refuse ids that no vocabulary of this size has, padding included.

    Raises:
        ValueError: no id at all, or one outside the vocabulary; names its row and position.
    """
    if ids.numel() == 0:
        raise ValueError(
            f"{input_name}: there is no token in a batch of shape {list(ids.shape)}; give at least one a row"
        )
    lowest_id, highest_id = ids.aminmax()
    if lowest_id < 0 or highest_id >= vocab:
        row, column = ((ids < 0) | (ids >= vocab)).nonzero()[0].tolist()
        raise ValueError(
            f"{input_name} row {row}, position {column}: id {int(ids[row, column])} is outside the "
            f"vocabulary of {vocab}; the tokenizer does not belong to this model"
        )
