"""UL2's denoising objectives as one compiled kernel, from windows of tokens to padded batches.

Implements the R, S and X denoisers (paper section 3.3, Table 3) and Stage II's prefix form. Random numbers
are Philox4x32-10 with the seed as key and the sample's number as counter, so a sample's corruption depends on
(seed, sample) alone and not on the batch.

Layout as in the release: encoder `[mode] text with sentinels </s>`, labels `<extra_id_0> span
<extra_id_1> span ... </s>`, decoder `pad labels[:-1]`.

All compiled functions are in this file, because numba's cache checks only the file of the function that it
loads: it would not notice a change in an imported one. Signatures are explicit, so each function is compiled
once per machine and loaded from the cache afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, types

from openba.recipes.train import WindowsRecipe
from openba.tokenizer.tokenizer import Tokenizer

_WORDS = types.Array(types.uint64, 1, "C")
_UINT = types.uint64
_IDS = types.Array(types.int32, 2, "C")
_ROW = types.Array(types.int32, 1, "C")
_BYTES = types.Array(types.uint8, 1, "C")
_TABLE = types.Array(types.int64, 2, "C", readonly=True)
_NUMBERS = types.Array(types.int64, 1, "C", readonly=True)
_LENGTHS = types.Array(types.int64, 2, "C")
_WINDOWS = types.Array(types.int32, 2, "C", readonly=True)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# State of a generator: key (words 0, 1), counter (2 to 5), random words (6 to 9), number of used ones (10).
_STATE_WORDS = 11
# Second counter word, so that the same sample number gives other random words for another purpose.
_DENOISE = np.uint64(0)
_SHUFFLE = np.uint64(1)
# Columns of a denoiser table.
_MODE = 0  # id of the mode token
_MASKED = 1  # masked tokens
_SPANS = 2
_IS_UNIFORM = 3  # 1: the masked tokens are drawn from 1 to that many
_IS_CLOSED = 4  # 1: </s> ends the labels
_IS_ANYWHERE = 5  # 1: unmasked tokens may follow the last span
# Entries of the special ids.
_PAD = 0
_SENTINEL = 1
_EOS = 2
_IGNORE = 3


@njit(types.void(_WORDS), cache=True, nogil=True)
def philox(state: np.ndarray) -> None:
    """Fill the random words from key and counter, then increment the counter: Philox4x32-10 of Random123."""
    k0 = state[0]
    k1 = state[1]
    c0 = state[2]
    c1 = state[3]
    c2 = state[4]
    c3 = state[5]
    for _ in range(10):
        left_product = c0 * np.uint64(0xD2511F53)
        right_product = c2 * np.uint64(0xCD9E8D57)
        c0 = (right_product >> _HALF) ^ c1 ^ k0
        c1 = right_product & _LOW
        c2 = (left_product >> _HALF) ^ c3 ^ k1
        c3 = left_product & _LOW
        k0 = (k0 + np.uint64(0x9E3779B9)) & _LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & _LOW
    state[6] = c0
    state[7] = c1
    state[8] = c2
    state[9] = c3
    state[10] = np.uint64(0)
    state[2] = (state[2] + np.uint64(1)) & _LOW


@njit(types.void(_WORDS, _UINT, _UINT, _UINT), cache=True, nogil=True)
def _seed_state(state: np.ndarray, seed: np.uint64, purpose: np.uint64, sample: np.uint64) -> None:
    state[0] = seed & _LOW
    state[1] = seed >> _HALF
    state[2] = np.uint64(0)
    state[3] = purpose
    state[4] = sample & _LOW
    state[5] = sample >> _HALF
    state[10] = np.uint64(4)


@njit(_UINT(_WORDS, _UINT), cache=True, nogil=True)
def _random_below(state: np.ndarray, count: np.uint64) -> np.uint64:
    """Return an exactly uniform number in 0..count-1: Lemire's multiplication with rejection."""
    while True:
        if state[10] == np.uint64(4):
            philox(state)
        product = state[np.uint64(6) + state[10]] * count
        state[10] += np.uint64(1)
        low = product & _LOW
        if low >= count or low >= (np.uint64(2**32) - count) % count:
            return product >> _HALF


@njit(types.void(_BYTES, types.int64, types.int64, _WORDS), cache=True, nogil=True)
def _mark_cuts(is_start: np.ndarray, total: int, parts: int, state: np.ndarray) -> None:
    """Mark the starts, except the first, of a uniformly random split of `total` into positive parts.

    `parts - 1` of the positions 1..total-1 are drawn without replacement, or the remaining positions if these
    are fewer, so that few draws hit a position twice.
    """
    cut_count = parts - 1
    position_count = total - 1
    draws_cuts = 2 * cut_count <= position_count
    is_start[:total] = 0 if draws_cuts else 1
    remaining = cut_count if draws_cuts else position_count - cut_count
    while remaining > 0:
        position = 1 + np.int64(_random_below(state, np.uint64(position_count)))
        if (is_start[position] == 0) == draws_cuts:
            is_start[position] = 1 if draws_cuts else 0
            remaining -= 1


@njit(
    types.void(_ROW, _ROW, _WINDOWS, types.int64, _BYTES, _BYTES, types.int64, types.int64, _ROW, _ROW),
    cache=True,
    nogil=True,
)
def _write_spans(
    encoder: np.ndarray,
    labels: np.ndarray,
    windows: np.ndarray,
    row: int,
    unmasked_starts: np.ndarray,
    masked_starts: np.ndarray,
    unmasked_count: int,
    masked_count: int,
    special_ids: np.ndarray,
    ends: np.ndarray,
) -> None:
    """Write unmasked and masked segments in turn, unmasked first, then the remaining unmasked tokens.

    `ends` receives the next free positions of encoder and labels.
    """
    source = 0
    unmasked = 0
    masked = 0
    encoder_end = 1
    label_end = 0
    sentinel = special_ids[_SENTINEL]
    while masked < masked_count:
        encoder[encoder_end] = windows[row, source]
        encoder_end += 1
        unmasked += 1
        source += 1
        while unmasked < unmasked_count and unmasked_starts[unmasked] == 0:
            encoder[encoder_end] = windows[row, source]
            encoder_end += 1
            unmasked += 1
            source += 1
        encoder[encoder_end] = sentinel
        labels[label_end] = sentinel
        labels[label_end + 1] = windows[row, source]
        encoder_end += 1
        label_end += 2
        masked += 1
        source += 1
        while masked < masked_count and masked_starts[masked] == 0:
            labels[label_end] = windows[row, source]
            label_end += 1
            masked += 1
            source += 1
        sentinel -= 1
    while unmasked < unmasked_count:
        encoder[encoder_end] = windows[row, source]
        encoder_end += 1
        unmasked += 1
        source += 1
    ends[0] = encoder_end
    ends[1] = label_end


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
    special_ids: np.ndarray,
    encoders: np.ndarray,
    decoders: np.ndarray,
    labels: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Fill the four outputs row by row."""
    window_length = windows.shape[1]
    state = np.empty(_STATE_WORDS, np.uint64)
    ends = np.empty(2, np.int32)
    unmasked_starts = np.empty(window_length + 1, np.uint8)
    masked_starts = np.empty(window_length, np.uint8)
    for row in range(len(samples)):
        _seed_state(state, seed, _DENOISE, np.uint64(samples[row]))
        # Every denoiser of the recipe is equally likely.
        denoiser = np.int64(_random_below(state, np.uint64(len(table))))
        masked_count = table[denoiser, _MASKED]
        span_count = table[denoiser, _SPANS]
        encoder = encoders[row]
        label = labels[row]
        encoder[0] = table[denoiser, _MODE]
        if table[denoiser, _IS_UNIFORM]:
            masked_count = 1 + np.int64(_random_below(state, np.uint64(masked_count)))
        unmasked_count = window_length - masked_count
        if table[denoiser, _IS_ANYWHERE]:  # zero or more unmasked tokens behind the last span
            _mark_cuts(masked_starts, masked_count, span_count, state)
            _mark_cuts(unmasked_starts, unmasked_count + 1, span_count + 1, state)
        elif span_count == 1:  # one span at the end: nothing to draw
            masked_starts[:masked_count] = 0
            unmasked_starts[:unmasked_count] = 0
        else:
            _mark_cuts(masked_starts, masked_count, span_count, state)
            _mark_cuts(unmasked_starts, unmasked_count, span_count, state)
        _write_spans(
            encoder,
            label,
            windows,
            row,
            unmasked_starts,
            masked_starts,
            unmasked_count,
            masked_count,
            special_ids,
            ends,
        )
        encoder_end = ends[0]
        label_end = ends[1]
        encoder[encoder_end] = special_ids[_EOS]
        encoder[encoder_end + 1 :] = special_ids[_PAD]
        if table[denoiser, _IS_CLOSED]:
            label[label_end] = special_ids[_EOS]
            label_end += 1
        label[label_end:] = special_ids[_IGNORE]
        decoder = decoders[row]
        decoder[0] = special_ids[_PAD]
        decoder[1:label_end] = label[: label_end - 1]
        decoder[label_end:] = special_ids[_PAD]
        lengths[0, row] = encoder_end + 1
        lengths[1, row] = label_end
        lengths[2, row] = denoiser


@njit(types.void(_NUMBERS, _UINT, _TABLE, types.int64, _LENGTHS), cache=True, nogil=True)
def _measure(
    samples: np.ndarray, seed: np.uint64, table: np.ndarray, length: int, lengths: np.ndarray
) -> None:
    """Fill encoder and target lengths, from the same first draws as `_denoise`, without any tokens."""
    state = np.empty(_STATE_WORDS, np.uint64)
    for row in range(len(samples)):
        _seed_state(state, seed, _DENOISE, np.uint64(samples[row]))
        denoiser = np.int64(_random_below(state, np.uint64(len(table))))
        masked_count = table[denoiser, _MASKED]
        span_count = table[denoiser, _SPANS]
        if table[denoiser, _IS_UNIFORM]:
            masked_count = 1 + np.int64(_random_below(state, np.uint64(masked_count)))
        lengths[0, row] = length - masked_count + span_count + 2
        lengths[1, row] = masked_count + span_count + table[denoiser, _IS_CLOSED]


@njit(types.int64[::1](_NUMBERS, types.int64, _UINT), cache=True, nogil=True)
def _shuffle(positions: np.ndarray, count: int, seed: np.uint64) -> np.ndarray:
    """Compute `shuffled`: a Feistel network of eight rounds over the next even power of two.

    Values beyond `count` are permuted again until one falls below it (cycle walking).
    """
    half_bits = np.uint64(1)
    while (1 << (2 * np.int64(half_bits))) < count:
        half_bits += np.uint64(1)
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    state = np.empty(_STATE_WORDS, np.uint64)
    items = np.empty(len(positions), np.int64)
    for index in range(len(positions)):
        epoch = positions[index] // count
        value = np.uint64(positions[index] % count)
        while True:
            left_half = value >> half_bits
            right_half = value & mask
            for feistel_round in range(8):
                purpose = _SHUFFLE + np.uint64(feistel_round)
                _seed_state(state, seed, purpose, np.uint64(epoch) << _HALF)
                state[4] = right_half
                philox(state)
                left_half, right_half = right_half, left_half ^ (state[6] & mask)
            value = (left_half << half_bits) | right_half
            if np.int64(value) < count:
                break
        items[index] = np.int64(value)
    return items


def shuffled(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the items at positions of an endless series of epochs, each in its own random order.

    No table is needed, so the cost does not depend on the number of items.

    Args:
        positions: int64 `[positions]`; position p is number `p % count` of epoch `p // count`.
        count: items of an epoch.
        seed: of all orders.

    Returns:
        int64 `[positions]`, each item of 0..count-1 once per epoch.
    """
    return _shuffle(np.ascontiguousarray(positions, np.int64), count, np.uint64(seed % 2**64))


@dataclass(frozen=True)
class Denoised:
    """Padded batch; its widths are the longest that the objective can give."""

    encoder: np.ndarray  # int32 [batch, encoder width], padded with the pad id
    decoder: np.ndarray  # int32 [batch, target width], labels shifted right behind a pad id
    labels: np.ndarray  # int32 [batch, target width], padded with `ignore`
    encoder_lengths: np.ndarray  # int32 [batch]
    target_lengths: np.ndarray  # int32 [batch]
    denoisers: np.ndarray  # int32 [batch], row of the recipe's denoisers that was drawn


class Denoising:
    """Denoising objective for one tokenizer: Table 3's denoisers, or Stage II's prefix form."""

    def __init__(self, recipe: WindowsRecipe, tokenizer: Tokenizer, ignore: int) -> None:
        """Prepare the denoisers.

        Args:
            recipe: the objective.
            tokenizer: gives the ids of modes and sentinels.
            ignore: label of padding, which the loss skips.
        """
        self.length = recipe.length
        self.widths = recipe.longest
        self.table = _denoiser_table(recipe, tokenizer)
        self.special_ids = np.array([tokenizer.pad, tokenizer.sentinel(0), tokenizer.eos, ignore], np.int32)

    def batch(self, windows: np.ndarray, samples: np.ndarray, seed: int) -> Denoised:
        """Corrupt windows.

        Args:
            windows: int32 `[batch, length]`.
            samples: int64 `[batch]`, numbers of the samples in the run; they and the seed decide everything.
            seed: its lowest 64 bits count.

        Raises:
            ValueError: the windows have another length than the objective.
        """
        if windows.shape != (len(samples), self.length):
            raise ValueError(f"windows {windows.shape} for {len(samples)} samples of {self.length} tokens")
        encoder_width, target_width = self.widths
        batch_size = len(samples)
        encoder = np.empty((batch_size, encoder_width), np.int32)
        decoder = np.empty((batch_size, target_width), np.int32)
        labels = np.empty((batch_size, target_width), np.int32)
        lengths = np.empty((3, batch_size), np.int32)
        _denoise(
            np.ascontiguousarray(windows, np.int32),
            np.ascontiguousarray(samples, np.int64),
            np.uint64(seed % 2**64),
            self.table,
            self.special_ids,
            encoder,
            decoder,
            labels,
            lengths,
        )
        return Denoised(encoder, decoder, labels, *lengths)

    def lengths(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """Return the encoder and target lengths that `batch` will give these samples, int64 `[2, batch]`."""
        lengths = np.empty((2, len(samples)), np.int64)
        numbers = np.ascontiguousarray(samples, np.int64)
        _measure(numbers, np.uint64(seed % 2**64), self.table, self.length, lengths)
        return lengths


def _denoiser_table(recipe: WindowsRecipe, tokenizer: Tokenizer) -> np.ndarray:
    """Return one row per denoiser, int64 `[denoisers, 6]`; columns `_MODE` and so on."""
    rows = [
        (
            tokenizer.mode(corruption.mode),
            corruption.masked,
            corruption.spans,
            corruption.draws_fewer,
            corruption.is_closed,
            corruption.ends_anywhere,
        )
        for corruption in recipe.corruptions()
    ]
    return np.array(rows, np.int64)
