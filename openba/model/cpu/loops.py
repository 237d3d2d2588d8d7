"""One decoder position in compiled loops, for fp32 weights on a CPU.

Owns the arithmetic of one decoder layer for one new token a row, and of a linear layer for few rows. The
definition is `blocks.DecoderBlock` (`tests/model/test_step.py` holds both together); caches and the loop over
tokens are `decoding.py`'s. Imports no torch.

One row times a matrix is bounded by reading the matrix: 27 MB take 0.36 ms on two cores, torch's product
1.6 ms, this one 0.41; 16 rows 2.5 ms at best and 1.5. Around the products torch needs some 30 calls a layer,
here a layer is one. Compiled once a machine, see `openba.data.denoise`; all kernels stand in this one file
for numba's cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
from numba import njit, prange, types

_F1 = types.Array(types.float32, 1, "C")
_F2 = types.Array(types.float32, 2, "C")
_F3 = types.Array(types.float32, 3, "C")
_F6 = types.Array(types.float32, 6, "C")
_NUMBERS = types.Array(types.int64, 1, "C")
_INT = types.intp
# Sums in any order, so that they fill vector registers; nothing about NaN or infinity is assumed.
_MATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
_BLOCK = 16
"""Outputs that a thread computes at a time."""
_WORTH_SHARING = 2**19
"""Multiplications from which on threads share them, 20 us of work or more. Two threads meet in 1.2 us, but
on a machine with other work one waits for the other until that is given a core again."""
_pool_lock = threading.Lock()


@contextmanager
def pool(threads: int) -> Iterator[None]:
    """Run kernels on this many threads.

    Without an OpenMP library numba has a pool of its own, which ends the process when two Python threads use
    it at once; with OpenMP they would compete for the same cores. So they take turns.
    """
    with _pool_lock:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        yield


@njit(types.void(_F2, _F2, _F2, _INT, _INT), cache=True, fastmath=_MATH)
def _tile(inputs: np.ndarray, weight: np.ndarray, output: np.ndarray, row: int, out: int) -> None:
    """Multiply four rows by four outputs: each value that is loaded serves four products."""
    s00 = s01 = s02 = s03 = np.float32(0)
    s10 = s11 = s12 = s13 = np.float32(0)
    s20 = s21 = s22 = s23 = np.float32(0)
    s30 = s31 = s32 = s33 = np.float32(0)
    # 16 multiply-adds for 8 loads.
    for k in range(inputs.shape[1]):
        w0 = weight[out, k]
        w1 = weight[out + 1, k]
        w2 = weight[out + 2, k]
        w3 = weight[out + 3, k]
        x0 = inputs[row, k]
        x1 = inputs[row + 1, k]
        x2 = inputs[row + 2, k]
        x3 = inputs[row + 3, k]
        s00 += x0 * w0
        s01 += x0 * w1
        s02 += x0 * w2
        s03 += x0 * w3
        s10 += x1 * w0
        s11 += x1 * w1
        s12 += x1 * w2
        s13 += x1 * w3
        s20 += x2 * w0
        s21 += x2 * w1
        s22 += x2 * w2
        s23 += x2 * w3
        s30 += x3 * w0
        s31 += x3 * w1
        s32 += x3 * w2
        s33 += x3 * w3
    output[row, out] = s00
    output[row, out + 1] = s01
    output[row, out + 2] = s02
    output[row, out + 3] = s03
    output[row + 1, out] = s10
    output[row + 1, out + 1] = s11
    output[row + 1, out + 2] = s12
    output[row + 1, out + 3] = s13
    output[row + 2, out] = s20
    output[row + 2, out + 1] = s21
    output[row + 2, out + 2] = s22
    output[row + 2, out + 3] = s23
    output[row + 3, out] = s30
    output[row + 3, out + 1] = s31
    output[row + 3, out + 2] = s32
    output[row + 3, out + 3] = s33


@njit(types.void(_F2, _F2, _F2, _INT, _INT), cache=True, fastmath=_MATH)
def _strip(inputs: np.ndarray, weight: np.ndarray, output: np.ndarray, row: int, out: int) -> None:
    """Multiply one row by four outputs."""
    s0 = s1 = s2 = s3 = np.float32(0)
    for k in range(inputs.shape[1]):
        x = inputs[row, k]
        s0 += x * weight[out, k]
        s1 += x * weight[out + 1, k]
        s2 += x * weight[out + 2, k]
        s3 += x * weight[out + 3, k]
    output[row, out] = s0
    output[row, out + 1] = s1
    output[row, out + 2] = s2
    output[row, out + 3] = s3


@njit(types.float32(_F1, _F1), cache=True, fastmath=_MATH)
def _dot(left_vector: np.ndarray, right_vector: np.ndarray) -> np.floating:
    total = np.float32(0)
    for k in range(left_vector.shape[0]):
        total += left_vector[k] * right_vector[k]
    return total


@njit(types.void(_F2, _F2, _F1, _F2, _INT), cache=True, fastmath=_MATH)
def _linear_block(
    inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray, output: np.ndarray, block: int
) -> None:
    row_count = inputs.shape[0]
    first_out = block * _BLOCK
    end_out = min(weight.shape[0], (block + 1) * _BLOCK)
    # Full tiles first, then rows and outputs that fill none.
    tiled_end = first_out + (end_out - first_out) // 4 * 4
    for out in range(first_out, tiled_end, 4):
        for row in range(0, row_count // 4 * 4, 4):
            _tile(inputs, weight, output, row, out)
        for row in range(row_count // 4 * 4, row_count):
            _strip(inputs, weight, output, row, out)
    for out in range(tiled_end, end_out):
        for row in range(row_count):
            output[row, out] = _dot(inputs[row], weight[out])
    if bias.shape[0]:
        for row in range(row_count):
            for out in range(first_out, end_out):
                output[row, out] += bias[out]


@njit(types.void(_F2, _F2, _F1, _F2), cache=True, parallel=True, nogil=True)
def _linear_shared(inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray, output: np.ndarray) -> None:
    for block in prange((weight.shape[0] + _BLOCK - 1) // _BLOCK):
        _linear_block(inputs, weight, bias, output, block)


@njit(types.void(_F2, _F2, _F1, _F2), cache=True, nogil=True)
def linear(inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray, output: np.ndarray) -> None:
    """`output = inputs @ weight.T + bias`: `[rows, inputs]` to `[rows, outputs]`; an empty bias is none."""
    # Two functions, since numba compiles a parallel loop whether or not threads are to share it.
    if inputs.shape[0] * weight.size >= _WORTH_SHARING:
        _linear_shared(inputs, weight, bias, output)
    else:
        for block in range((weight.shape[0] + _BLOCK - 1) // _BLOCK):
            _linear_block(inputs, weight, bias, output, block)


@njit(types.void(_F1, _F2, _F2, _INT, _F1, _F1), cache=True, fastmath=_MATH)
def _attend_one(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    key_count: int,
    scores: np.ndarray,
    output: np.ndarray,
) -> None:
    """Attend with one query `[kv]` to the first `key_count` of `[positions, kv]`."""
    # Three passes over few positions: scores stay in cache, and the softmax is as stable as torch's.
    highest_score = np.float32(-np.inf)
    scale = np.float32(1 / math.sqrt(query.shape[0]))
    for position in range(key_count):
        scores[position] = _dot(query, keys[position]) * scale
        highest_score = max(highest_score, scores[position])
    total = np.float32(0)
    for position in range(key_count):
        scores[position] = math.exp(scores[position] - highest_score)
        total += scores[position]
    output[:] = np.float32(0)
    for position in range(key_count):
        share = scores[position] / total
        for channel in range(query.shape[0]):
            output[channel] += share * values[position, channel]


@njit(types.void(_F3, _INT, _F6, _INT, _NUMBERS, _F3, _INT), cache=True)
def _attend_head(
    query: np.ndarray,
    head_stride: int,
    cache: np.ndarray,
    layer_index: int,
    key_counts: np.ndarray,
    output: np.ndarray,
    flat_index: int,
) -> None:
    row = flat_index // output.shape[1]
    head = flat_index % output.shape[1]
    scores = np.empty(key_counts[row], np.float32)
    keys = cache[layer_index, 0, row, head]
    values = cache[layer_index, 1, row, head]
    _attend_one(query[row, head * head_stride], keys, values, key_counts[row], scores, output[row, head])


@njit(types.void(_F3, _INT, _F6, _INT, _NUMBERS, _F3), cache=True, parallel=True, nogil=True)
def _attend_shared(
    query: np.ndarray,
    head_stride: int,
    cache: np.ndarray,
    layer_index: int,
    key_counts: np.ndarray,
    output: np.ndarray,
) -> None:
    for flat_index in prange(output.shape[0] * output.shape[1]):
        _attend_head(query, head_stride, cache, layer_index, key_counts, output, flat_index)


@njit(types.void(_F3, _INT, _F6, _INT, _NUMBERS, _F3), cache=True, nogil=True)
def _attend(
    query: np.ndarray,
    head_stride: int,
    cache: np.ndarray,
    layer_index: int,
    key_counts: np.ndarray,
    output: np.ndarray,
) -> None:
    """Attend with each row's and head's query to the first `key_counts[row]` positions of a layer's cache.

    `query` is `[rows, heads * head_stride, kv]`, a head's at each `head_stride`-th index; `output`
    `[rows, heads, kv]`.
    """
    if 2 * key_counts.sum() * output.shape[1] * output.shape[2] >= _WORTH_SHARING:
        _attend_shared(query, head_stride, cache, layer_index, key_counts, output)
    else:
        for flat_index in range(output.shape[0] * output.shape[1]):
            _attend_head(query, head_stride, cache, layer_index, key_counts, output, flat_index)


@njit(types.void(_F2, _F2), cache=True, fastmath=_MATH, nogil=True)
def _swiglu(gate_and_up: np.ndarray, output: np.ndarray) -> None:
    """`silu(gate) * up` of `[rows, gate | up]`."""
    width = output.shape[1]
    for row in range(output.shape[0]):
        for channel in range(width):
            gate = gate_and_up[row, channel]
            silu = gate / (np.float32(1) + math.exp(-gate))
            output[row, channel] = silu * gate_and_up[row, width + channel]


@njit(types.void(_F2, _F1, _F1, types.float32, _F2), cache=True, fastmath=_MATH, nogil=True)
def norm(
    inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float, output: np.ndarray
) -> None:
    """LayerNorm over the last dimension; with an empty bias RMSNorm; without weights nothing."""
    width = np.float32(inputs.shape[1])
    if not weight.shape[0]:
        output[:] = inputs
        return
    for row in range(inputs.shape[0]):
        mean = np.float32(0)
        if bias.shape[0]:
            for channel in range(inputs.shape[1]):
                mean += inputs[row, channel]
            mean /= width
        square = np.float32(0)
        for channel in range(inputs.shape[1]):
            square += (inputs[row, channel] - mean) * (inputs[row, channel] - mean)
        inverse_rms = np.float32(1) / np.float32(math.sqrt(square / width + epsilon))
        for channel in range(inputs.shape[1]):
            output[row, channel] = (inputs[row, channel] - mean) * inverse_rms * weight[channel]
        if bias.shape[0]:
            for channel in range(inputs.shape[1]):
                output[row, channel] += bias[channel]


@njit(types.void(_F1, _F1, _F1, _F1), cache=True, fastmath=_MATH)
def _rotate(source: np.ndarray, cosines: np.ndarray, sines: np.ndarray, output: np.ndarray) -> None:
    """Rotate pairs (channel i with i + kv / 2) of `[kv]`; `output` may be `source`."""
    half_width = source.shape[0] // 2
    for channel in range(half_width):
        first = source[channel]
        second = source[channel + half_width]
        output[channel] = first * cosines[channel] - second * sines[channel]
        output[channel + half_width] = second * cosines[channel] + first * sines[channel]


@njit(types.void(_F3, _F2, _F2, _NUMBERS, _F6, _INT), cache=True, fastmath=_MATH, nogil=True)
def _store(
    packed_qkv: np.ndarray,
    cosines: np.ndarray,
    sines: np.ndarray,
    positions: np.ndarray,
    cache: np.ndarray,
    layer_index: int,
) -> None:
    """Rotate query and key of `[rows, heads * 3, kv]`; keys and values go into the cache at `positions`."""
    for row in range(packed_qkv.shape[0]):
        position = positions[row]
        # The key goes rotated into the cache, so it is rotated once and not at every later position.
        for head in range(packed_qkv.shape[1] // 3):
            query = packed_qkv[row, 3 * head]
            key = packed_qkv[row, 3 * head + 1]
            _rotate(query, cosines[position], sines[position], query)
            _rotate(key, cosines[position], sines[position], cache[layer_index, 0, row, head, position])
            cache[layer_index, 1, row, head, position] = packed_qkv[row, 3 * head + 2]


@njit(types.void(_F2, _F2), cache=True, fastmath=_MATH, nogil=True)
def _add(total: np.ndarray, addend: np.ndarray) -> None:
    for row in range(total.shape[0]):
        for channel in range(total.shape[1]):
            total[row, channel] += addend[row, channel]


_WEIGHTS = types.UniTuple(_F2, 6)
_BIASES = types.UniTuple(_F1, 4)
_NORMS = types.UniTuple(types.UniTuple(_F1, 2), 5)


@njit(
    types.void(
        *(_F2, _WEIGHTS, _BIASES, _NORMS, types.float32, _F2, _F2),
        *(_NUMBERS, _NUMBERS, _F6, _F6, _INT),
    ),
    cache=True,
    nogil=True,
)
def layer_step(
    hidden_states: np.ndarray,
    weights: tuple[np.ndarray, ...],
    biases: tuple[np.ndarray, ...],
    norms: tuple[tuple[np.ndarray, np.ndarray], ...],
    epsilon: float,
    cosines: np.ndarray,
    sines: np.ndarray,
    positions: np.ndarray,
    source_lengths: np.ndarray,
    self_cache: np.ndarray,
    cross_cache: np.ndarray,
    layer_index: int,
) -> None:
    """Compute one decoder layer for one new token a row, `hidden_states` `[rows, hidden]` in place.

    Args:
        hidden_states: Input and output.
        weights: qkv, o, q and o of cross-attention, fc_in, fc_out.
        biases: Of the first four; empty for none.
        norms: Weight and bias of the five norms in the order of their use, see `norm`.
        epsilon: The norms' epsilon.
        cosines: `[positions, kv / 2]`.
        sines: The same.
        positions: Position of each row's token.
        source_lengths: Tokens of each row's source.
        self_cache: `[layers, 2, at least rows, heads, positions, kv]`.
        cross_cache: `[layers, 2, at least rows, heads, source, kv]`.
        layer_index: The layer's number.
    """
    row_count = hidden_states.shape[0]
    heads = self_cache.shape[3]
    kv_channels = self_cache.shape[5]
    # numba allows no None in a tuple of arrays: an empty array is a missing bias or norm.
    no_bias = np.empty(0, np.float32)
    normed = np.empty_like(hidden_states)
    sublayer_output = np.empty_like(hidden_states)
    attention_output = np.empty((row_count, heads * kv_channels), np.float32)
    output_by_head = attention_output.reshape((row_count, heads, kv_channels))

    # Self-attention: `DecoderBlock.input_layernorm`, `self_attn`, `self_attn_norm`.
    packed_qkv = np.empty((row_count, 3 * heads * kv_channels), np.float32)
    norm(hidden_states, norms[0][0], norms[0][1], epsilon, normed)
    linear(normed, weights[0], biases[0], packed_qkv)
    qkv_by_head = packed_qkv.reshape((row_count, 3 * heads, kv_channels))
    _store(qkv_by_head, cosines, sines, positions, self_cache, layer_index)
    _attend(qkv_by_head, 3, self_cache, layer_index, positions + 1, output_by_head)
    linear(attention_output, weights[1], biases[1], sublayer_output)
    norm(sublayer_output, norms[1][0], norms[1][1], epsilon, normed)
    _add(hidden_states, normed)

    # Cross-attention: `post_attn_layernorm`, `inter_attn`, `inter_attn_norm`.
    query = np.empty((row_count, heads * kv_channels), np.float32)
    norm(hidden_states, norms[2][0], norms[2][1], epsilon, normed)
    linear(normed, weights[2], biases[2], query)
    query_by_head = query.reshape((row_count, heads, kv_channels))
    _attend(query_by_head, 1, cross_cache, layer_index, source_lengths, output_by_head)
    linear(attention_output, weights[3], biases[3], sublayer_output)
    norm(sublayer_output, norms[3][0], norms[3][1], epsilon, normed)
    _add(hidden_states, normed)

    # Feed-forward: `post_inter_attn_layernorm`, `mlp`.
    gate_and_up = np.empty((row_count, weights[4].shape[0]), np.float32)
    gated = np.empty((row_count, weights[5].shape[1]), np.float32)
    norm(hidden_states, norms[4][0], norms[4][1], epsilon, normed)
    linear(normed, weights[4], no_bias, gate_and_up)
    _swiglu(gate_and_up, gated)
    linear(gated, weights[5], no_bias, sublayer_output)
    _add(hidden_states, sublayer_output)
