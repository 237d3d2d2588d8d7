"""Which tokens of a flat tensor belong together: the layout that attention follows.

Linear layers see `[tokens, width]` and do not care; attention must not cross from one row (a sample's encoder
or decoder side) to another. Owns that layout in its two forms: ragged, where only real tokens are there, and
padded, where every row is filled up to one width. Computes no attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, one after the other in a flat tensor."""

    lengths: tuple[int, ...]
    """Real tokens of each row."""
    width: int | None
    """Places of each row in the flat tensor, real tokens first; None: as many as its real tokens (ragged)."""
    positions: Tensor
    """int64 `[tokens]`: position of each token in its row, from 0 over real tokens."""
    index: Tensor | None = None
    """int64 `[tokens]`: where each token stands in the `[rows * width]` grid of ids; None: everywhere."""

    @classmethod
    def padded(cls, mask: Tensor) -> Rows:
        """Every place of the grid is computed; bool `[rows, width]` is True at the head of each row."""
        count, width = mask.shape
        positions = torch.arange(width, device=mask.device).repeat(count)
        return cls(tuple(mask.sum(-1).tolist()), width, positions)

    @classmethod
    def ragged(cls, mask: Tensor) -> Rows:
        """Only the True places of bool `[rows, width]` are computed, wherever they stand."""
        if bool(mask.all()):
            return cls.padded(mask)
        index = mask.flatten().nonzero().squeeze(-1)
        positions = (mask.cumsum(-1) - 1).flatten()[index]
        return cls(tuple(mask.sum(-1).tolist()), None, positions, index)

    @property
    def full(self) -> bool:
        """No place is padding and all rows have one length."""
        return all(length == self.width for length in self.lengths)

    def spans(self) -> tuple[Span, ...]:
        """First and one behind the last place of each row's real tokens in the flat tensor."""
        starts = accumulate((self.width or n for n in self.lengths), initial=0)
        return tuple((start, start + n) for start, n in zip(starts, self.lengths, strict=False))

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """The real tokens of each row: views `[length, ...]` of `[tokens, ...]`."""
        if self.width is None:
            return tokens.split(self.lengths)
        return tokens.split([size for n in self.lengths for size in (n, self.width - n)])[::2]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`; places of padding are zero."""
        if self.width is not None:
            pads = [parts[0].new_zeros((self.width - n, *parts[0].shape[1:])) for n in self.lengths]
            parts = [x for pair in zip(parts, pads, strict=True) for x in pair]
        return torch.cat(parts)

    def mask(self) -> Tensor:
        """Bool `[rows, width]` of a padded layout, True for a real token."""
        lengths = torch.tensor(self.lengths, device=self.positions.device)
        return first(lengths, self.width or max(self.lengths))

    def flat(self, grid: Tensor) -> Tensor:
        """`[rows, width, ...]` to `[tokens, ...]`."""
        tokens = grid.flatten(0, 1)
        return tokens if self.index is None else tokens.index_select(0, self.index)

    def grid(self, tokens: Tensor, width: int) -> Tensor:
        """`[tokens, ...]` to `[rows, width, ...]`, the inverse of `flat`; places without a token are zero."""
        if self.index is None:
            return tokens.unflatten(0, (len(self.lengths), width))
        out = tokens.new_zeros((len(self.lengths) * width, *tokens.shape[1:]))
        return out.index_copy(0, self.index, tokens).unflatten(0, (len(self.lengths), width))


def first(lengths: Tensor, width: int) -> Tensor:
    """Bool `[rows, width]`, True at the first `lengths` places of each row."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]
