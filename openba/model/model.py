"""The asymmetric encoder-decoder: blocks, stacks, shared embedding, loss.

Owns the architecture of paper section 3.2 and its settings (norm kind, sandwich, biases, tied
head, any depths). Decoding loops are `generate.py`'s, files are `files.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openba.model.layers import Attention, Cache, SwiGLU, make_norm, padding_bias, rotary_table
from openba.recipes.model import ModelRecipe

IGNORE = -100
"""Label of positions that carry no loss."""


class Block(nn.Module):
    """Self-attention, cross-attention in the decoder, SwiGLU; sandwich norm on attention outputs."""

    def __init__(self, recipe: ModelRecipe, decoder: bool) -> None:
        super().__init__()
        self.self_norm, self.self_attention = make_norm(recipe), Attention(recipe)
        self.self_out_norm = make_norm(recipe) if recipe.sandwich else nn.Identity()
        if decoder:
            self.cross_norm, self.cross_attention = make_norm(recipe), Attention(recipe)
            self.cross_out_norm = make_norm(recipe) if recipe.sandwich else nn.Identity()
        self.mlp_norm, self.mlp = make_norm(recipe), SwiGLU(recipe)
        self.dropout = nn.Dropout(recipe.dropout)

    def encode(self, x_BSD: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        """One encoder layer over a whole source."""
        h = self.self_norm(x_BSD)
        h = self.self_attention(h, self.self_attention.project(h, table), table=table, bias=bias)
        x_BSD = x_BSD + self.dropout(self.self_out_norm(h))
        return x_BSD + self.dropout(self.mlp(self.mlp_norm(x_BSD)))

    def decode(
        self, x_BTD: Tensor, table: Tensor, memory: Cache, bias: Tensor | None, past: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """One decoder layer; with `past`, `x` is the next position only. Returns the new self cache."""
        h = self.self_norm(x_BTD)
        offset = 0 if past is None else past[0].shape[-2]
        cache = self.self_attention.project(h, table, offset)
        if past is not None:
            cache = (torch.cat([past[0], cache[0]], -2), torch.cat([past[1], cache[1]], -2))
        h = self.self_attention(h, cache, table=table, offset=offset, causal=past is None)
        x_BTD = x_BTD + self.dropout(self.self_out_norm(h))
        h = self.cross_attention(self.cross_norm(x_BTD), memory, bias=bias)
        x_BTD = x_BTD + self.dropout(self.cross_out_norm(h))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD))), cache


class OpenBAModel(nn.Module):
    """Encoder ids and decoder ids to a loss or logits."""

    def __init__(self, recipe: ModelRecipe, vocab: int, max_length: int) -> None:
        """Args: `vocab` rows of the embedding (already padded), `max_length` the longest trained side.

        Longer input works (rotary positions have no end), it is only not what was trained.
        """
        super().__init__()
        self.recipe, self.vocab, self.max_length = recipe, vocab, max_length
        self.embedding = nn.Embedding(vocab, recipe.d_model)
        self.encoder = nn.ModuleList(Block(recipe, decoder=False) for _ in range(recipe.encoder_layers))
        self.decoder = nn.ModuleList(Block(recipe, decoder=True) for _ in range(recipe.decoder_layers))
        self.encoder_norm, self.decoder_norm = make_norm(recipe), make_norm(recipe)
        self.head = None if recipe.tie_embeddings else nn.Linear(recipe.d_model, vocab, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(vocab)) if recipe.head_bias else None
        self._rotary: Tensor | None = None
        self._initialise()

    def encode(self, encoder_ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """`[B, S]` ids and their mask (True: a token) to `[B, S, d_model]`."""
        x = self.embedding(encoder_ids_BS)
        bias, table = padding_bias(mask_BS, x.dtype), self._table(x.shape[1])
        for block in _blocks(self.encoder):
            x = block.encode(x, table, bias)
        return self.encoder_norm(x)

    def memory(self, encoded_BSD: Tensor) -> list[Cache]:
        """Cross-attention keys and values of every decoder layer, computed once per source."""
        return [block.cross_attention.project(encoded_BSD) for block in _blocks(self.decoder)]

    def decode(
        self, ids_BT: Tensor, memory: list[Cache], mask_BS: Tensor, past: list[Cache] | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Decoder ids to hidden states `[B, T, d_model]` and the self-attention cache of every layer."""
        x = self.embedding(ids_BT)
        bias = padding_bias(mask_BS, x.dtype)
        table = self._table(x.shape[1] + (past[0][0].shape[-2] if past else 0))
        caches: list[Cache] = []
        for index, block in enumerate(_blocks(self.decoder)):
            x, cache = block.decode(x, table, memory[index], bias, past[index] if past else None)
            caches.append(cache)
        return self.decoder_norm(x), caches

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., d_model]` to fp32 `[..., vocab]`; the tied head is unscaled, as in the release."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight, self.head_bias).float()

    def forward(
        self, encoder_ids_BS: Tensor, mask_BS: Tensor, decoder_ids_BT: Tensor, labels_BT: Tensor
    ) -> Tensor:
        """Cross entropy of each sample summed over its labelled positions: fp32 `[B]`."""
        memory = self.memory(self.encode(encoder_ids_BS, mask_BS))
        hidden, _ = self.decode(decoder_ids_BT, memory, mask_BS)
        labelled = labels_BT != IGNORE
        # Only labelled positions reach the head: padding would be half of its work (Table 3's lengths).
        losses = F.cross_entropy(self.logits(hidden[labelled]), labels_BT[labelled], reduction="none")
        return losses.new_zeros(labels_BT.shape).masked_scatter(labelled, losses).sum(-1)

    def _table(self, length: int) -> Tensor:
        """The fp32 rotary table of at least `length` positions, on the weights' device."""
        # Not a buffer: an engine that casts the module to bf16 would cast the angles with it
        # (the released training code lost precision that way, its inference code did not).
        device, known = self.embedding.weight.device, self._rotary
        if known is None or known.device != device or known.shape[1] < length:
            width, base = self.recipe.kv_channels, self.recipe.rope_base
            with torch.inference_mode(False):  # made while generating, it must serve training as well
                self._rotary = known = rotary_table(max(length, self.max_length), width, base, device)
        return known

    @torch.no_grad()
    def _initialise(self) -> None:
        """N(0, init_std); projections back into the residual stream N(0, init_std / sqrt(2 * depth)).

        The release scales by its encoder's depth in both stacks; each stack's own depth is used here.
        """
        for stack in (self.encoder, self.decoder):
            for name, parameter in stack.named_parameters():
                if parameter.dim() > 1:
                    back = name.endswith(("output.weight", "down.weight"))
                    depth = (2 * len(stack)) ** 0.5 if back else 1.0
                    nn.init.normal_(parameter, std=self.recipe.init_std / depth)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)
        for weight in (self.embedding.weight, None if self.head is None else self.head.weight):
            if weight is not None:
                nn.init.normal_(weight, std=self.recipe.init_std)


def _blocks(stack: nn.ModuleList) -> Iterator[Block]:
    """The stack's blocks with their type, which ModuleList forgets."""
    return cast(Iterator[Block], iter(stack))
