"""One decoder position in compiled loops, for fp32 weights on a CPU.

Owns the arithmetic of one decoder layer for one new token a row, and of a linear layer for few rows. What is
computed is `step.py`'s, whose plain form is the reference (`tests/model/test_step.py`); caches and loops are
`decoding.py`'s. It knows no torch.

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

_F1, _F2, _F3 = (types.Array(types.float32, n, "C") for n in (1, 2, 3))
_F4, _F6 = types.Array(types.float32, 4, "C"), types.Array(types.float32, 6, "C")
_NUMBERS, _INT = types.Array(types.int64, 1, "C"), types.intp
# Sums in any order, so that they fill vector registers; nothing about NaN or infinity is assumed.
_MATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
_BLOCK = 16
"""Outputs that a thread computes at a time."""
_WORTH_SHARING = 2**19
"""Multiplications from which on threads share them, 20 us of work or more. Two threads meet in 1.2 us, but
on a machine with other work one waits for the other until that is given a core again."""
_one_at_a_time = threading.Lock()


@contextmanager
def pool(threads: int) -> Iterator[None]:
    """Run kernels on this many threads.

    Where there is no OpenMP library, numba has a pool of its own, which ends the process when two Python
    threads use it at once; with OpenMP they would compete for the same cores. So they take turns.
    """
    with _one_at_a_time:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        yield


@njit(types.void(_F2, _F2, _F2, _INT, _INT), cache=True, fastmath=_MATH)
def _tile(x: np.ndarray, weight: np.ndarray, y: np.ndarray, r: int, o: int) -> None:
    """Four rows by four outputs: each value that is loaded serves four products."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
    for k in range(x.shape[1]):
        w0, w1, w2, w3 = weight[o, k], weight[o + 1, k], weight[o + 2, k], weight[o + 3, k]
        a, b, c, d = x[r, k], x[r + 1, k], x[r + 2, k], x[r + 3, k]
        a0, a1, a2, a3 = a0 + a * w0, a1 + a * w1, a2 + a * w2, a3 + a * w3
        b0, b1, b2, b3 = b0 + b * w0, b1 + b * w1, b2 + b * w2, b3 + b * w3
        c0, c1, c2, c3 = c0 + c * w0, c1 + c * w1, c2 + c * w2, c3 + c * w3
        d0, d1, d2, d3 = d0 + d * w0, d1 + d * w1, d2 + d * w2, d3 + d * w3
    y[r, o], y[r, o + 1], y[r, o + 2], y[r, o + 3] = a0, a1, a2, a3
    y[r + 1, o], y[r + 1, o + 1], y[r + 1, o + 2], y[r + 1, o + 3] = b0, b1, b2, b3
    y[r + 2, o], y[r + 2, o + 1], y[r + 2, o + 2], y[r + 2, o + 3] = c0, c1, c2, c3
    y[r + 3, o], y[r + 3, o + 1], y[r + 3, o + 2], y[r + 3, o + 3] = d0, d1, d2, d3


@njit(types.void(_F2, _F2, _F2, _INT, _INT), cache=True, fastmath=_MATH)
def _strip(x: np.ndarray, weight: np.ndarray, y: np.ndarray, r: int, o: int) -> None:
    """One row by four outputs."""
    a0 = a1 = a2 = a3 = np.float32(0)
    for k in range(x.shape[1]):
        a = x[r, k]
        a0, a1 = a0 + a * weight[o, k], a1 + a * weight[o + 1, k]
        a2, a3 = a2 + a * weight[o + 2, k], a3 + a * weight[o + 3, k]
    y[r, o], y[r, o + 1], y[r, o + 2], y[r, o + 3] = a0, a1, a2, a3


@njit(types.float32(_F1, _F1), cache=True, fastmath=_MATH)
def _dot(x: np.ndarray, y: np.ndarray) -> np.floating:
    total = np.float32(0)
    for k in range(x.shape[0]):
        total += x[k] * y[k]
    return total


@njit(types.void(_F2, _F2, _F1, _F2, _INT), cache=True, fastmath=_MATH)
def _linear_block(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, block: int) -> None:
    rows, first, last = x.shape[0], block * _BLOCK, min(weight.shape[0], (block + 1) * _BLOCK)
    whole = first + (last - first) // 4 * 4
    for o in range(first, whole, 4):
        for r in range(0, rows // 4 * 4, 4):
            _tile(x, weight, y, r, o)
        for r in range(rows // 4 * 4, rows):
            _strip(x, weight, y, r, o)
    for o in range(whole, last):
        for r in range(rows):
            y[r, o] = _dot(x[r], weight[o])
    if bias.shape[0]:
        for r in range(rows):
            for o in range(first, last):
                y[r, o] += bias[o]


@njit(types.void(_F2, _F2, _F1, _F2), cache=True, parallel=True, nogil=True)
def _linear_shared(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
    for block in prange((weight.shape[0] + _BLOCK - 1) // _BLOCK):
        _linear_block(x, weight, bias, y, block)


@njit(types.void(_F2, _F2, _F1, _F2), cache=True, nogil=True)
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
    """`y = x @ weight.T + bias`: `[rows, inputs]` to `[rows, outputs]`; an empty bias is none."""
    if x.shape[0] * weight.size >= _WORTH_SHARING:
        _linear_shared(x, weight, bias, y)
    else:
        for block in range((weight.shape[0] + _BLOCK - 1) // _BLOCK):
            _linear_block(x, weight, bias, y, block)


@njit(types.void(_F1, _F2, _F2, _INT, _F1, _F1), cache=True, fastmath=_MATH)
def _attend_one(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, count: int, scores: np.ndarray, out: np.ndarray
) -> None:
    """One query `[kv]` against the first `count` of `[positions, kv]`."""
    highest = np.float32(-np.inf)
    scale = np.float32(1 / math.sqrt(query.shape[0]))
    for t in range(count):
        scores[t] = _dot(query, keys[t]) * scale
        highest = max(highest, scores[t])
    total = np.float32(0)
    for t in range(count):
        scores[t] = math.exp(scores[t] - highest)
        total += scores[t]
    out[:] = np.float32(0)
    for t in range(count):
        share = scores[t] / total
        for c in range(query.shape[0]):
            out[c] += share * values[t, c]


@njit(types.void(_F3, _INT, _F6, _INT, _NUMBERS, _F3, _INT), cache=True)
def _attend_head(
    query: np.ndarray, apart: int, stored: np.ndarray, layer: int, counts: np.ndarray, out: np.ndarray, i: int
) -> None:
    r, h = i // out.shape[1], i % out.shape[1]
    scores = np.empty(counts[r], np.float32)
    keys, values = stored[layer, 0, r, h], stored[layer, 1, r, h]
    _attend_one(query[r, h * apart], keys, values, counts[r], scores, out[r, h])


@njit(types.void(_F3, _INT, _F6, _INT, _NUMBERS, _F3), cache=True, parallel=True, nogil=True)
def _attend_shared(
    query: np.ndarray, apart: int, stored: np.ndarray, layer: int, counts: np.ndarray, out: np.ndarray
) -> None:
    for i in prange(out.shape[0] * out.shape[1]):
        _attend_head(query, apart, stored, layer, counts, out, i)


@njit(types.void(_F3, _INT, _F6, _INT, _NUMBERS, _F3), cache=True, nogil=True)
def _attend(
    query: np.ndarray, apart: int, stored: np.ndarray, layer: int, counts: np.ndarray, out: np.ndarray
) -> None:
    """Every row's and head's query against the row's first `counts` places of a layer's `stored`.

    `query` is `[rows, heads * apart, kv]`, a head's at each `apart`-th place; `out` `[rows, heads, kv]`.
    """
    if 2 * counts.sum() * out.shape[1] * out.shape[2] >= _WORTH_SHARING:
        _attend_shared(query, apart, stored, layer, counts, out)
    else:
        for i in range(out.shape[0] * out.shape[1]):
            _attend_head(query, apart, stored, layer, counts, out, i)


@njit(types.void(_F2, _F2), cache=True, fastmath=_MATH, nogil=True)
def _gate(packed: np.ndarray, out: np.ndarray) -> None:
    """`silu(gate) * up` of `[rows, gate | up]`."""
    width = out.shape[1]
    for r in range(out.shape[0]):
        for c in range(width):
            gate = packed[r, c]
            out[r, c] = gate / (np.float32(1) + math.exp(-gate)) * packed[r, width + c]


@njit(types.void(_F2, _F1, _F1, types.float32, _F2), cache=True, fastmath=_MATH, nogil=True)
def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float, out: np.ndarray) -> None:
    """LayerNorm over the last dimension; with an empty bias RMSNorm; without weights nothing."""
    width = np.float32(x.shape[1])
    if not weight.shape[0]:
        out[:] = x
        return
    for r in range(x.shape[0]):
        mean = np.float32(0)
        if bias.shape[0]:
            for c in range(x.shape[1]):
                mean += x[r, c]
            mean /= width
        square = np.float32(0)
        for c in range(x.shape[1]):
            square += (x[r, c] - mean) * (x[r, c] - mean)
        inverse = np.float32(1) / np.float32(math.sqrt(square / width + epsilon))
        for c in range(x.shape[1]):
            out[r, c] = (x[r, c] - mean) * inverse * weight[c]
        if bias.shape[0]:
            for c in range(x.shape[1]):
                out[r, c] += bias[c]


@njit(types.void(_F3, _F2, _F2, _NUMBERS, _F6, _INT), cache=True, fastmath=_MATH, nogil=True)
def _store(
    packed: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    cache: np.ndarray,
    layer: int,
) -> None:
    """Rotate query and key of `[rows, heads * 3, kv]`; keys and values go into the cache at `positions`."""
    half = packed.shape[2] // 2
    for r in range(packed.shape[0]):
        place = positions[r]
        for h in range(packed.shape[1] // 3):
            query, key, value = packed[r, 3 * h], packed[r, 3 * h + 1], packed[r, 3 * h + 2]
            stored = cache[layer, 0, r, h, place]
            for c in range(half):
                turn, lean = cos[place, c], sin[place, c]
                first, second = query[c], query[c + half]
                query[c], query[c + half] = first * turn - second * lean, second * turn + first * lean
                first, second = key[c], key[c + half]
                stored[c], stored[c + half] = first * turn - second * lean, second * turn + first * lean
            cache[layer, 1, r, h, place] = value


@njit(types.void(_F2, _F2), cache=True, fastmath=_MATH, nogil=True)
def _add(x: np.ndarray, y: np.ndarray) -> None:
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            x[r, c] += y[r, c]


_WEIGHTS, _BIASES = types.UniTuple(_F2, 6), types.UniTuple(_F1, 4)
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
    x: np.ndarray,
    weights: tuple[np.ndarray, ...],
    biases: tuple[np.ndarray, ...],
    norms: tuple[tuple[np.ndarray, np.ndarray], ...],
    epsilon: float,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    lengths: np.ndarray,
    cache: np.ndarray,
    memory: np.ndarray,
    layer: int,
) -> None:
    """One decoder layer for one new token a row, `x` `[rows, hidden]` in place.

    Args:
        x: hidden states.
        weights: qkv, o, q and o of cross-attention, fc_in, fc_out.
        biases: of the first four; empty for none.
        norms: weight and bias of the five norms in the order of their use, see `norm`.
        epsilon: theirs.
        cos: `[positions, kv / 2]`.
        sin: the same.
        positions: of each row's token.
        lengths: of each row's source.
        cache: `[layers, 2, at least rows, heads, positions, kv]`.
        memory: `[layers, 2, at least rows, heads, source, kv]`.
        layer: its number.
    """
    rows, heads, kv = x.shape[0], cache.shape[3], cache.shape[5]
    normed, out = np.empty_like(x), np.empty_like(x)
    mixed = np.empty((rows, heads * kv), np.float32)
    heads_of_mixed = mixed.reshape((rows, heads, kv))
    packed = np.empty((rows, 3 * heads * kv), np.float32)
    norm(x, norms[0][0], norms[0][1], epsilon, normed)
    linear(normed, weights[0], biases[0], packed)
    heads_of_packed = packed.reshape((rows, 3 * heads, kv))
    _store(heads_of_packed, cos, sin, positions, cache, layer)
    _attend(heads_of_packed, 3, cache, layer, positions + 1, heads_of_mixed)
    linear(mixed, weights[1], biases[1], out)
    norm(out, norms[1][0], norms[1][1], epsilon, normed)
    _add(x, normed)
    query = np.empty((rows, heads * kv), np.float32)
    norm(x, norms[2][0], norms[2][1], epsilon, normed)
    linear(normed, weights[2], biases[2], query)
    _attend(query.reshape((rows, heads, kv)), 1, memory, layer, lengths, heads_of_mixed)
    linear(mixed, weights[3], biases[3], out)
    norm(out, norms[3][0], norms[3][1], epsilon, normed)
    _add(x, normed)
    wide = np.empty((rows, weights[4].shape[0]), np.float32)
    gated = np.empty((rows, weights[5].shape[1]), np.float32)
    norm(x, norms[4][0], norms[4][1], epsilon, normed)
    linear(normed, weights[4], np.empty(0, np.float32), wide)
    _gate(wide, gated)
    linear(gated, weights[5], np.empty(0, np.float32), out)
    _add(x, out)
