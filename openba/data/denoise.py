"""UL2's objectives as one compiled kernel: windows of tokens in, a whole padded batch out.

Owns the R, S and X denoisers (paper section 3.3, Table 3), Stage II's prefix form, and the random
numbers behind them: Philox4x32-10, keyed by the seed and counted by the sample's number, so that a
sample's corruption depends on (seed, sample) and on nothing else, whatever the batch it stands in.
It reads no files and knows no tensors.

Layout as in the release: encoder `[mode] text with sentinels </s>`, labels `<extra_id_0> span
<extra_id_1> span ... </s>`, decoder `pad labels[:-1]`.

All compiled functions stand in this one file, since numba's cache looks at the file of the function
it loads only: a change in an imported one would go unnoticed. Signatures are explicit, so each is
compiled once a machine and loaded from the cache afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, types

from openba.recipes.train import WindowsRecipe
from openba.tokenizer.tokenizer import Tokenizer

_WORDS, _UINT = types.Array(types.uint64, 1, "C"), types.uint64
_IDS, _ROW = types.Array(types.int32, 2, "C"), types.Array(types.int32, 1, "C")
_BYTES, _TABLE = types.Array(types.uint8, 1, "C"), types.Array(types.int64, 2, "C", readonly=True)
_NUMBERS = types.Array(types.int64, 1, "C", readonly=True)
_LENGTHS = types.Array(types.int64, 2, "C")
_WINDOWS = types.Array(types.int32, 2, "C", readonly=True)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# A generator's state: two key words, four counter words, four words drawn, how many of them are used.
_STATE = 11
_DENOISE, _SHUFFLE = np.uint64(0), np.uint64(1)  # the second counter word: what the numbers are for


@njit(types.void(_WORDS), cache=True, nogil=True)
def philox(state: np.ndarray) -> None:
    """Fill words 6..9 from key and counter (0..5), then count up: Philox4x32-10 of Random123."""
    k0, k1 = state[0], state[1]
    c0, c1, c2, c3 = state[2], state[3], state[4], state[5]
    for _ in range(10):
        left = c0 * np.uint64(0xD2511F53)
        right = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (right >> _HALF) ^ c1 ^ k0, right & _LOW, (left >> _HALF) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    state[6], state[7], state[8], state[9], state[10] = c0, c1, c2, c3, np.uint64(0)
    state[2] = (state[2] + np.uint64(1)) & _LOW


@njit(types.void(_WORDS, _UINT, _UINT, _UINT), cache=True, nogil=True)
def _begin(state: np.ndarray, seed: np.uint64, purpose: np.uint64, number: np.uint64) -> None:
    state[0], state[1] = seed & _LOW, seed >> _HALF
    state[2], state[3], state[4], state[5] = np.uint64(0), purpose, number & _LOW, number >> _HALF
    state[10] = np.uint64(4)


@njit(_UINT(_WORDS, _UINT), cache=True, nogil=True)
def _below(state: np.ndarray, count: np.uint64) -> np.uint64:
    """Uniform in 0..count-1, exactly: Lemire's multiplication with rejection."""
    while True:
        if state[10] == np.uint64(4):
            philox(state)
        product = state[np.uint64(6) + state[10]] * count
        state[10] += np.uint64(1)
        low = product & _LOW
        if low >= count or low >= (np.uint64(2**32) - count) % count:
            return product >> _HALF


@njit(types.void(_BYTES, types.int64, types.int64, _WORDS), cache=True, nogil=True)
def _cut(marks: np.ndarray, total: int, parts: int, state: np.ndarray) -> None:
    """Mark the beginnings, the first left out, of a uniformly random split into positive parts.

    `parts - 1` of the places 1..total-1 are drawn without replacement, or the others where those
    are fewer, so that few draws hit a place twice.
    """
    cuts, places = parts - 1, total - 1
    few = 2 * cuts <= places
    marks[:total] = 0 if few else 1
    wanted = cuts if few else places - cuts
    while wanted > 0:
        place = 1 + np.int64(_below(state, np.uint64(places)))
        if (marks[place] == 0) == few:
            marks[place] = 1 if few else 0
            wanted -= 1


@njit(
    types.void(_ROW, _ROW, _WINDOWS, types.int64, _BYTES, _BYTES, types.int64, types.int64, _ROW, _ROW),
    cache=True,
    nogil=True,
)
def _spans(
    encoder: np.ndarray,
    labels: np.ndarray,
    windows: np.ndarray,
    row: int,
    kept_marks: np.ndarray,
    masked_marks: np.ndarray,
    kept: int,
    masked: int,
    special: np.ndarray,
    ends: np.ndarray,
) -> None:
    """Write kept and masked segments in turn, kept first, and then the kept tokens that are left.

    `ends` receives both rows' next places.
    """
    source = e = k = m = 0
    e, t, sentinel = 1, 0, special[1]
    while m < masked:
        encoder[e] = windows[row, source]
        e, k, source = e + 1, k + 1, source + 1
        while k < kept and kept_marks[k] == 0:
            encoder[e] = windows[row, source]
            e, k, source = e + 1, k + 1, source + 1
        encoder[e] = sentinel
        labels[t] = sentinel
        labels[t + 1] = windows[row, source]
        e, t, m, source = e + 1, t + 2, m + 1, source + 1
        while m < masked and masked_marks[m] == 0:
            labels[t] = windows[row, source]
            t, m, source = t + 1, m + 1, source + 1
        sentinel -= 1
    while k < kept:
        encoder[e] = windows[row, source]
        e, k, source = e + 1, k + 1, source + 1
    ends[0], ends[1] = e, t


@njit(
    types.void(_WINDOWS, _NUMBERS, _UINT, _TABLE, _ROW, _IDS, _IDS, _IDS, _IDS),
    cache=True,
    nogil=True,
)
def _denoise(
    windows: np.ndarray,
    samples: np.ndarray,
    seed: np.uint64,
    table: np.ndarray,
    special: np.ndarray,
    encoders: np.ndarray,
    decoders: np.ndarray,
    labels: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Fill the four outputs row by row. `special`: pad, <extra_id_0>, </s>, the labels' padding."""
    length = windows.shape[1]
    state, ends = np.empty(_STATE, np.uint64), np.empty(2, np.int32)
    kept_marks, masked_marks = np.empty(length + 1, np.uint8), np.empty(length, np.uint8)
    for row in range(len(samples)):
        _begin(state, seed, _DENOISE, np.uint64(samples[row]))
        chosen = np.int64(_below(state, np.uint64(len(table))))
        masked, parts, closed = table[chosen, 1], table[chosen, 2], table[chosen, 4]
        encoder, label = encoders[row], labels[row]
        encoder[0] = table[chosen, 0]
        if table[chosen, 3]:
            masked = 1 + np.int64(_below(state, np.uint64(masked)))
        if table[chosen, 5]:  # a last kept segment, of none or more tokens, behind the last masked one
            _cut(masked_marks, masked, parts, state)
            _cut(kept_marks, length - masked + 1, parts + 1, state)
        elif parts == 1:  # one span at the end: no cut is left to draw
            masked_marks[:masked] = 0
            kept_marks[: length - masked] = 0
        else:
            _cut(masked_marks, masked, parts, state)
            _cut(kept_marks, length - masked, parts, state)
        _spans(encoder, label, windows, row, kept_marks, masked_marks, length - masked, masked, special, ends)
        e, t = ends[0], ends[1]
        encoder[e] = special[2]
        encoder[e + 1 :] = special[0]
        if closed:
            label[t] = special[2]
            t += 1
        label[t:] = special[3]
        decoder = decoders[row]
        decoder[0] = special[0]
        decoder[1:t] = label[: t - 1]
        decoder[t:] = special[0]
        lengths[0, row], lengths[1, row], lengths[2, row] = e + 1, t, chosen


@njit(types.void(_NUMBERS, _UINT, _TABLE, types.int64, _LENGTHS), cache=True, nogil=True)
def _measure(
    samples: np.ndarray, seed: np.uint64, table: np.ndarray, length: int, lengths: np.ndarray
) -> None:
    """Fill encoder and target lengths: `_denoise`'s first draws, and nothing of its work."""
    state = np.empty(_STATE, np.uint64)
    for row in range(len(samples)):
        _begin(state, seed, _DENOISE, np.uint64(samples[row]))
        chosen = np.int64(_below(state, np.uint64(len(table))))
        masked, parts = table[chosen, 1], table[chosen, 2]
        if table[chosen, 3]:
            masked = 1 + np.int64(_below(state, np.uint64(masked)))
        lengths[0, row] = length - masked + parts + 2
        lengths[1, row] = masked + parts + table[chosen, 4]


@njit(types.int64[::1](_NUMBERS, types.int64, _UINT), cache=True, nogil=True)
def _shuffle(positions: np.ndarray, count: int, seed: np.uint64) -> np.ndarray:
    """See `shuffled`; a Feistel network of eight rounds over the next even power of two, walked in cycles."""
    half = np.uint64(1)
    while (1 << (2 * np.int64(half))) < count:
        half += np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    state, found = np.empty(_STATE, np.uint64), np.empty(len(positions), np.int64)
    for i in range(len(positions)):
        epoch, value = positions[i] // count, np.uint64(positions[i] % count)
        while True:
            left, right = value >> half, value & mask
            for turn in range(8):
                _begin(state, seed, _SHUFFLE + np.uint64(turn), np.uint64(epoch) << _HALF)
                state[4] = right
                philox(state)
                left, right = right, left ^ (state[6] & mask)
            value = (left << half) | right
            if np.int64(value) < count:
                break
        found[i] = np.int64(value)
    return found


def shuffled(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Items that stand at positions of an endless series of epochs, each an order of its own.

    Args:
        positions: int64 `[n]`; position p is place `p % count` of epoch `p // count`.
        count: items of an epoch.
        seed: with another seed all orders are others.

    Returns:
        int64 `[n]`, each item of 0..count-1 once an epoch. No table is held, so 10^9 items cost nothing.
    """
    return _shuffle(np.ascontiguousarray(positions, np.int64), count, np.uint64(seed % 2**64))


@dataclass(frozen=True)
class Denoised:
    """A padded batch; widths are the objective's longest."""

    encoder: np.ndarray  # int32 [B, E], padded with pad
    decoder: np.ndarray  # int32 [B, T], labels shifted right behind a pad
    labels: np.ndarray  # int32 [B, T], padded with `ignore`
    encoder_lengths: np.ndarray  # int32 [B]
    target_lengths: np.ndarray  # int32 [B]
    denoisers: np.ndarray  # int32 [B], which row of the recipe was drawn


class Denoising:
    """An objective ready to use: Table 3's denoisers, or Stage II's prefix form, for one tokenizer."""

    def __init__(self, recipe: WindowsRecipe, tokenizer: Tokenizer, ignore: int) -> None:
        """Args: `ignore` pads the labels."""
        self.length, self.widths = recipe.length, recipe.longest
        self.table = _table(recipe, tokenizer)
        self.special = np.array([tokenizer.pad, tokenizer.sentinel(0), tokenizer.eos, ignore], np.int32)

    def batch(self, windows: np.ndarray, samples: np.ndarray, seed: int) -> Denoised:
        """Corrupt windows.

        Args:
            windows: int32 `[B, length]`.
            samples: int64 `[B]`, numbers of the samples in the run; with the seed they decide everything.
            seed: its lowest 64 bits count.

        Raises:
            ValueError: the windows have another length than the objective.
        """
        if windows.shape != (len(samples), self.length):
            raise ValueError(f"windows {windows.shape} for {len(samples)} samples of {self.length} tokens")
        rows, (encoder_width, target_width) = len(samples), self.widths
        encoder = np.empty((rows, encoder_width), np.int32)
        decoder, labels = (np.empty((rows, target_width), np.int32) for _ in range(2))
        lengths = np.empty((3, rows), np.int32)
        numbers = np.ascontiguousarray(samples, np.int64)
        text = np.ascontiguousarray(windows, np.int32)
        _denoise(
            text,
            numbers,
            np.uint64(seed % 2**64),
            self.table,
            self.special,
            encoder,
            decoder,
            labels,
            lengths,
        )
        return Denoised(encoder, decoder, labels, *lengths)

    def lengths(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """Encoder and target lengths, int64 `[2, B]`, that `batch` will give samples of these numbers."""
        lengths = np.empty((2, len(samples)), np.int64)
        numbers = np.ascontiguousarray(samples, np.int64)
        _measure(numbers, np.uint64(seed % 2**64), self.table, self.length, lengths)
        return lengths


def _table(recipe: WindowsRecipe, tokenizer: Tokenizer) -> np.ndarray:
    """A row a denoiser, int64 `[D, 6]`.

    Columns: the mode's id, masked tokens, spans, 1 if the masked tokens are drawn from 1 to that many,
    1 if </s> ends the labels, 1 if kept tokens may follow the last masked one.
    """
    rows = [
        (tokenizer.mode(c.mode), c.masked, c.spans, c.draws_fewer, c.is_closed, c.ends_anywhere)
        for c in recipe.corruptions()
    ]
    return np.array(rows, np.int64)
