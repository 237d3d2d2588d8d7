"""The encoder-decoder as modules: embedding, two stacks, head, initial values, input checks.

Owns what every form of the model shares. `model.py` adds the training loss, `modeling_openba.py`
transformers' interface. Names of weights are the released checkpoints' (`shared_embedding.weight`,
`encoder.block.0...`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openba.recipes.architecture import Architecture

from .blocks import Decoder, DecoderAttention, Encoder
from .functions import linear, rotary_table
from .rows import Rows


class Seq2Seq(nn.Module):
    """Encoder ids and decoder ids to hidden states and logits, in either layout of rows."""

    architecture: Architecture

    def _build(self, architecture: Architecture, *, tied_head_is_shared: bool) -> None:
        """Make the modules. A tied head has no weight, unless `tied_head_is_shared` wants one to tie."""
        self.architecture = architecture
        vocab, width = architecture.vocab_size, architecture.hidden_size
        self.shared_embedding = nn.Embedding(vocab, width)
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        self.lm_head = nn.Linear(width, vocab, bias=architecture.add_lm_head_bias)
        if architecture.tie_word_embeddings and not tied_head_is_shared:
            self.lm_head.register_parameter("weight", None)
        self._rotary: Tensor | None = None

    def encode(self, ids: Tensor, rows: Rows) -> Tensor:
        """Ids `[tokens]` to the encoder's output `[tokens, hidden]`."""
        limit = self.architecture.max_seq_length
        return self.encoder(self.embed(ids), self._angles(rows, limit, "input"), rows)

    def decode(self, ids: Tensor, rows: Rows, attention: DecoderAttention) -> Tensor:
        """Ids `[tokens]` to hidden states `[tokens, hidden]`."""
        limit = self.architecture.decoder_max_seq_length
        return self.decoder(self.embed(ids), self._angles(rows, limit, "decoder input"), attention)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids `[tokens]` to embeddings `[tokens, hidden]`, scaled as the architecture says."""
        scale = self.architecture.embedding_scale
        embedded = self.shared_embedding(ids)
        return embedded if scale == 1.0 else embedded * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` to fp32 `[..., vocab]`; a tied head is unscaled, as in the release's training."""
        return linear(hidden, self.head_weight, self.lm_head.bias).float()

    @property
    def head_weight(self) -> Tensor:
        """`[vocab, hidden]`: the embedding's, if the head is tied."""
        tied = self.architecture.tie_word_embeddings
        return self.shared_embedding.weight if tied else self.lm_head.weight

    def _angles(self, rows: Rows, limit: int, what: str) -> Tensor:
        """fp32 cosines and sines `[2, tokens, 1, kv / 2]` at the rows' positions."""
        for row, length in enumerate(rows.lengths):
            if length > limit:
                raise ValueError(
                    f"{what} row {row}: {length} tokens are more than the model's {limit} positions"
                )
        return self.table().index_select(1, rows.positions)

    def table(self) -> Tensor:
        """fp32 `[2, positions, 1, kv / 2]` on the weights' device."""
        # Not a buffer: an engine that casts the module to bf16 would cast the angles with it
        # (the released training code lost precision that way, its inference code did not).
        device = self.shared_embedding.weight.device
        if self._rotary is None or self._rotary.device != device:
            shape = self.architecture
            length = max(shape.max_seq_length, shape.decoder_max_seq_length)
            with torch.inference_mode(False):  # made while generating, it must serve training as well
                self._rotary = rotary_table(length, shape.kv_channels, shape.rope_theta, device)
        return self._rotary


@torch.no_grad()
def begin(module: nn.Module, std: float, device: torch.device) -> None:
    """Give a module on the meta device memory and its initial values; its children are not entered.

    Args: as `initialise`; `device` is where.
    """
    module.to_empty(device=device, recurse=False)
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


def check_ids(ids: Tensor, mask: Tensor, vocab: int, what: str) -> None:
    """Refuse what would give a meaningless answer: an empty row, or ids outside the vocabulary.

    Args:
        ids: int64 `[rows, width]`.
        mask: bool, the same shape, True for a real token.
        vocab: rows of the embedding.
        what: what to call the ids in the message.

    Raises:
        ValueError: names the row, and the id.
    """
    check_vocabulary(ids, vocab, what)
    empty = (~mask.any(-1)).nonzero()
    if len(empty):
        raise ValueError(f"{what} row {int(empty[0])}: nothing but padding; give at least one token")


def check_vocabulary(ids: Tensor, vocab: int, what: str) -> None:
    """The part of `check_ids` that padding has nothing to do with.

    Raises:
        ValueError: no id at all, or one outside the vocabulary; names its row and position.
    """
    if ids.numel() == 0:
        raise ValueError(
            f"{what}: there is no token in a batch of shape {list(ids.shape)}; give at least one a row"
        )
    lowest, highest = ids.aminmax()
    if lowest < 0 or highest >= vocab:
        row, column = ((ids < 0) | (ids >= vocab)).nonzero()[0].tolist()
        raise ValueError(
            f"{what} row {row}, position {column}: id {int(ids[row, column])} is outside the vocabulary of "
            f"{vocab}; the tokenizer does not belong to this model"
        )
