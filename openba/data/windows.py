"""Windows of a token store: which tokens make a sample, across the borders of documents or within them.

Owns the numbering of windows and their places in the stream. What is masked in them is `denoise.py`'s.

A document longer than a window is divided evenly when windows are bounded: 600 tokens become 300 and 300
rather than 568 and 32, so that no token is left out and no window is much shorter than it must be.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from openba.data.store import TokenStore
from openba.recipes.train import SHORTEST_WINDOW, TrainRecipe, WindowsRecipe

_BLOCK = 64
"""Documents between two remembered window numbers: an eighth of a byte of memory for each document."""
_BLOCKS_AT_ONCE = 2**14
"""A million documents: their offsets are read in pieces, since a store may have a thousand times as many."""


class Windows(Protocol):
    """Numbered windows of one store."""

    def __len__(self) -> int: ...

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return first token and number of tokens of the windows of these numbers, int64 `[windows]` each."""
        ...

    def length_counts(self) -> np.ndarray:
        """Return how many windows have 0, 1, 2... tokens, int64 `[longest + 1]`."""
        ...


class CrossedWindows:
    """Windows of one length that tile the stream; documents begin and end inside them."""

    def __init__(self, store: TokenStore, length: int) -> None:
        self.length = length
        self.window_count = store.count(length)

    def __len__(self) -> int:
        return self.window_count

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Windows`."""
        return numbers * self.length, np.full(len(numbers), self.length)

    def length_counts(self) -> np.ndarray:
        """See `Windows`."""
        return np.bincount([self.length], [self.window_count]).astype(np.int64)


class BoundedWindows:
    """Windows that hold text of one document each, of at most so many tokens."""

    def __init__(self, store: TokenStore, length: int) -> None:
        """Count the windows of all documents; documents of a single token have none.

        Args:
            store: Whose documents are divided.
            length: Most tokens of a window, at least 3.
        """
        self.offsets = store.offsets
        self.length = length
        document_count = len(self.offsets) - 1
        block_count = -(-document_count // _BLOCK)
        self._first_windows = np.zeros(block_count + 1, np.int64)
        for first in range(0, block_count, _BLOCKS_AT_ONCE):
            blocks = np.arange(first, min(first + _BLOCKS_AT_ONCE, block_count))
            self._first_windows[blocks + 1] = self._counts(self._document_tokens(blocks)).sum(1)
        np.cumsum(self._first_windows, out=self._first_windows)

    def __len__(self) -> int:
        return int(self._first_windows[-1])

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Windows`."""
        blocks = np.searchsorted(self._first_windows, numbers, "right") - 1
        tokens = self._document_tokens(blocks)
        ends = self._first_windows[blocks][:, None] + np.cumsum(self._counts(tokens), axis=1)
        columns = (ends <= numbers[:, None]).sum(1)
        rows = np.arange(len(numbers))
        document_tokens = tokens[rows, columns]
        window_counts = self._counts(document_tokens)
        window = numbers - (ends[rows, columns] - window_counts)
        begins = document_tokens * window // window_counts
        lengths = document_tokens * (window + 1) // window_counts - begins
        return self.offsets[blocks * _BLOCK + columns] + begins, lengths

    def length_counts(self) -> np.ndarray:
        """See `Windows`."""
        counts = np.zeros(self.length + 1, np.int64)
        block_count = len(self._first_windows) - 1
        for first in range(0, block_count, _BLOCKS_AT_ONCE):
            tokens = self._document_tokens(np.arange(first, min(first + _BLOCKS_AT_ONCE, block_count)))
            window_counts = self._counts(tokens)
            # Of a document divided evenly, `longer` windows have one token more than the others.
            shorter_lengths = tokens // np.maximum(window_counts, 1)
            longer = tokens - shorter_lengths * window_counts
            longer[window_counts == 0] = 0
            for lengths, numbers in (
                (shorter_lengths, window_counts - longer),
                (shorter_lengths + 1, longer),
            ):
                np.add.at(counts, lengths[numbers > 0], numbers[numbers > 0])
        return counts

    def _document_tokens(self, blocks: np.ndarray) -> np.ndarray:
        """Return the tokens of documents of blocks, int64 `[blocks, documents]`; 0 behind the last one."""
        borders = blocks[:, None] * _BLOCK + np.arange(_BLOCK + 1)
        return np.diff(self.offsets[np.minimum(borders, len(self.offsets) - 1)], axis=1)

    def _counts(self, tokens: np.ndarray) -> np.ndarray:
        """Return the numbers of windows of documents of so many tokens."""
        return np.where(tokens < SHORTEST_WINDOW, 0, -(-tokens // self.length))


def windows_of(store: TokenStore, recipe: WindowsRecipe) -> Windows:
    """Return the windows of a store as an objective wants them."""
    if recipe.windows == "bounded":
        return BoundedWindows(store, recipe.length)
    return CrossedWindows(store, recipe.length)


def mean_fill(train: TrainRecipe, length_counts: np.ndarray) -> tuple[float, float]:
    """Return the share of `encoder_length` and `decoder_length` that samples have on average.

    Args:
        train: A training whose data are windows.
        length_counts: Of `Windows`.
    """
    assert isinstance(train.data, WindowsRecipe)
    side_sums = np.zeros(2)
    for length in np.flatnonzero(length_counts).tolist():
        # Kinds are drawn uniformly per sample, and sizes within a kind are equally likely.
        recipe = train.data.at_length(length)
        kinds = [np.mean(corruption.sizes(length), axis=0) for corruption in recipe.corruptions()]
        side_sums += length_counts[length] * np.mean(kinds, axis=0)
    encoder, target = (side_sums / max(1, length_counts.sum())).tolist()
    return encoder / train.encoder_length, target / train.decoder_length
