"""One decoder position for all rows, by device kind.

`Step` is the whole interface of a device kind: generation and serving run it once a token. The plain form is
the model's own decoder blocks over caches; `make_step` takes a device kind's own where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from openba.model.caches import decode_new_tokens
from openba.model.layers import is_plain, linear_layers
from openba.model.seq2seq import Seq2Seq


class Step(Protocol):
    """The decoder for one position, and the head."""

    def __call__(
        self,
        ids: Tensor,
        positions: Sequence[int],
        self_cache: Tensor,
        cross_cache: Tensor,
        source_lengths: Sequence[int],
    ) -> Tensor:
        """Hidden states `[rows, hidden]` of one token a row.

        Args:
            ids: int64 `[rows]`.
            positions: Positions of these tokens; keys and values of all before are in `self_cache`.
            self_cache: `[layers, 2, at least rows, heads, positions, kv]`, contiguous; the new keys and
                values are written into it.
            cross_cache: The sources' keys and values, `[layers, 2, at least rows, heads, source, kv]`,
                contiguous.
            source_lengths: Tokens of each row's source.
        """
        ...

    def logits(self, hidden_states: Tensor) -> Tensor:
        """`[rows, hidden]` to fp32 `[rows, vocab]`."""
        ...


class BlockStep:
    """The model's decoder blocks over caches: every precision, every device."""

    def __init__(self, model: Seq2Seq) -> None:
        self.model = model

    def __call__(
        self,
        ids: Tensor,
        positions: Sequence[int],
        self_cache: Tensor,
        cross_cache: Tensor,
        source_lengths: Sequence[int],
    ) -> Tensor:
        """See `Step`."""
        # The same code as for several new tokens: no second definition of a layer has to be kept in step.
        new_ids = ids[:, None]
        hidden_states = decode_new_tokens(
            self.model, new_ids, positions, self_cache, cross_cache, source_lengths
        )
        return hidden_states[:, 0]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """See `Step`."""
        return self.model.logits(hidden_states)


def make_step(model: Seq2Seq) -> Step:
    """Return compiled loops for plain layers in fp32 on a CPU, else the model's own blocks."""
    on_cpu = model.shared_embedding.weight.device.type == "cpu"
    is_fp32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    # The loops read weights, so they would pass over adapters and hooks.
    if on_cpu and is_fp32 and all(is_plain(layer) for layer in linear_layers(model.decoder)):
        # Here: a process that never decodes in fp32 on a CPU need not load the loops (0.6 s).
        from openba.model.cpu.cpu_step import CompiledStep

        return CompiledStep(model)
    return BlockStep(model)
