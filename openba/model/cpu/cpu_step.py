"""One decoder position in compiled loops, one call a layer: fp32 on a CPU.

Generation runs the decoder once a token, and on a small model calls cost more than arithmetic. The result is
that of `DecoderBlock.forward` (`tests/model/test_step.py` compares them). The loops are `loops.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from openba.model.blocks import DecoderBlock
from openba.model.seq2seq import Seq2Seq

NormArrays = tuple[np.ndarray, np.ndarray]
"""Weight and bias of a norm, empty for what it has not; a norm without weight is the identity."""
LayerArrays = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], tuple[NormArrays, ...]]
"""Weights, biases and norms of a layer, as `loops.layer_step` takes them."""


class CompiledStep:
    """Implement `openba.model.step.Step` by numba's loops."""

    def __init__(self, model: Seq2Seq) -> None:
        threads = torch.get_num_threads()
        from openba.model.cpu import loops

        # Loading numba's pool sets OpenMP's number of threads, which is torch's, to all cores.
        torch.set_num_threads(threads)
        self.loops = loops
        self.layers = [_layer_arrays(cast(DecoderBlock, block)) for block in model.decoder.block]
        self.epsilon = model.architecture.layer_norm_epsilon
        # The model's own memory: nothing is copied.
        self.embedding = _array(model.shared_embedding.weight)
        self.embedding_scale = np.float32(model.architecture.embedding_scale)
        cosines, sines = model.rotary_angles(torch.device("cpu"))
        self.cosines = _array(cosines[:, 0])
        self.sines = _array(sines[:, 0])
        self.final_norm = _norm_arrays(model.decoder.final_layernorm)
        self.head_weight = _array(model.head_weight)
        self.head_bias = _array(model.lm_head.bias)

    def __call__(
        self,
        ids: Tensor,
        positions: Sequence[int],
        self_cache: Tensor,
        cross_cache: Tensor,
        source_lengths: Sequence[int],
    ) -> Tensor:
        """See `Step`."""
        hidden_states = self.embedding[ids.numpy()] * self.embedding_scale
        row_positions = np.array(positions, np.int64)
        row_sources = np.array(source_lengths, np.int64)
        self_array = self_cache.numpy()
        cross_array = cross_cache.numpy()
        output = np.empty_like(hidden_states)
        # The whole position under one lock: two requests would otherwise take turns at every layer.
        with self.loops.pool(torch.get_num_threads()):
            for layer_index, (weights, biases, norms) in enumerate(self.layers):
                self.loops.layer_step(
                    hidden_states, weights, biases, norms, self.epsilon, self.cosines, self.sines,
                    row_positions, row_sources, self_array, cross_array, layer_index,
                )  # fmt: skip
            self.loops.norm(hidden_states, *self.final_norm, self.epsilon, output)
        return torch.from_numpy(output)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """See `Step`."""
        output = np.empty((hidden_states.shape[0], self.head_weight.shape[0]), np.float32)
        with self.loops.pool(torch.get_num_threads()):
            self.loops.linear(_array(hidden_states), self.head_weight, self.head_bias, output)
        return torch.from_numpy(output)


def _array(tensor: Tensor | None) -> np.ndarray:
    """Return the same memory for numba; an empty array for None."""
    return np.empty(0, np.float32) if tensor is None else tensor.detach().contiguous().numpy()


def _norm_arrays(module: nn.Module) -> NormArrays:
    return _array(getattr(module, "weight", None)), _array(getattr(module, "bias", None))


def _layer_arrays(block: DecoderBlock) -> LayerArrays:
    self_attention = block.self_attn
    cross_attention = block.inter_attn
    projections = [self_attention.qkv, self_attention.o, cross_attention.q, cross_attention.o]
    linear_layers = [*projections, block.mlp.fc_in, block.mlp.fc_out]
    norms = [
        block.input_layernorm,
        block.self_attn_norm,
        block.post_attn_layernorm,
        block.inter_attn_norm,
        block.post_inter_attn_layernorm,
    ]
    weights = tuple(_array(layer.weight) for layer in linear_layers)
    biases = tuple(_array(layer.bias) for layer in projections)
    return weights, biases, tuple(_norm_arrays(norm) for norm in norms)
