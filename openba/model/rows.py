"""Layout of the rows in a flat tensor of tokens, which attention follows.

Linear layers see `[tokens, width]` and need no layout; attention must not cross from one row (a sample's
encoder or decoder side) to another. Owns that layout in its two forms: ragged, where only real tokens are
there, and padded, where every row is filled up to one width. Computes no attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
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
    """Tokens of each row in the flat tensor, real ones first; None: its real tokens only (ragged)."""
    positions: Tensor
    """int64 `[tokens]`: position of each token in its row, from 0 over real tokens."""
    index: Tensor | None = None
    """int64 `[tokens]`: index of each token in the `[rows * width]` grid of ids; None: all of the grid."""
    full: bool = field(init=False)
    """Whether all rows have one length and there is no padding."""
    packed: bool = field(init=False)
    """Whether the flat tensor holds real tokens only."""
    longest: int = field(init=False)
    """Real tokens of the longest row."""

    def __post_init__(self) -> None:
        # Plain attributes: compiled blocks read them, and must not depend on each row's length.
        object.__setattr__(self, "full", all(length == self.width for length in self.lengths))
        object.__setattr__(self, "packed", self.width is None or self.full)
        object.__setattr__(self, "longest", max(self.lengths, default=0))

    @classmethod
    def padded(cls, mask: Tensor) -> Rows:
        """Lay out the whole grid of a bool mask `[rows, width]`, True at the head of each row."""
        row_count, width = mask.shape
        positions = torch.arange(width, device=mask.device).repeat(row_count)
        return cls(tuple(mask.sum(-1).tolist()), width, positions)

    @classmethod
    def ragged(cls, mask: Tensor) -> Rows:
        """Lay out only the True elements of a bool mask `[rows, width]`, anywhere in their rows."""
        # Without padding the grid is the flat tensor, and no index has to be applied. On CUDA this test waits
        # for the device, as do the lengths below.
        if bool(mask.all()):
            return cls.padded(mask)
        grid_index = mask.flatten().nonzero().squeeze(-1)
        positions = (mask.cumsum(-1) - 1).flatten()[grid_index]
        return cls(tuple(mask.sum(-1).tolist()), None, positions, grid_index)

    def to(self, device: torch.device) -> Rows:
        """Return the layout with all its tensors on `device`; no kernel then asks the host for one."""
        # Made here, on the host, and copied without waiting; made on the device, each would wait.
        derived = {"offsets": self.offsets}
        if self.width is not None and not self.full:
            derived["mask"] = self.mask
        if self.positions.device == device:
            return self
        index = None if self.index is None else self.index.to(device, non_blocking=True)
        moved = Rows(self.lengths, self.width, self.positions.to(device, non_blocking=True), index)
        vars(moved).update({name: tensor.to(device, non_blocking=True) for name, tensor in derived.items()})
        return moved

    @cached_property
    def offsets(self) -> Tensor:
        """int32 `[rows + 1]`: first token of each row in the flat tensor, and the number of all."""
        # Cached: every layer of a pass asks for it, and making it copies from the host.
        starts = [first for first, _ in self.spans()]
        return torch.tensor([*starts, len(self.positions)], dtype=torch.int32, device=self.positions.device)

    def spans(self) -> tuple[Span, ...]:
        """Begin and end of each row's real tokens in the flat tensor."""
        row_starts = accumulate((self.width or length for length in self.lengths), initial=0)
        return tuple((start, start + length) for start, length in zip(row_starts, self.lengths, strict=False))

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return the real tokens of each row: views `[length, ...]` of `[tokens, ...]`."""
        if self.width is None:
            return tokens.split(self.lengths)
        real_and_padding = [size for length in self.lengths for size in (length, self.width - length)]
        return tokens.split(real_and_padding)[::2]

    def join(self, row_tokens: list[Tensor]) -> Tensor:
        """Invert `split`; padding is zero."""
        if self.width is not None:
            channels = row_tokens[0].shape[1:]
            pads = [row_tokens[0].new_zeros((self.width - length, *channels)) for length in self.lengths]
            row_tokens = [part for pair in zip(row_tokens, pads, strict=True) for part in pair]
        return torch.cat(row_tokens)

    @cached_property
    def mask(self) -> Tensor:
        """Bool `[rows, width]` of a padded layout, True for a real token."""
        # Cached, as `offsets`.
        lengths = torch.tensor(self.lengths, device=self.positions.device)
        return first(lengths, self.width or max(self.lengths))

    def flat(self, grid: Tensor) -> Tensor:
        """`[rows, width, ...]` to `[tokens, ...]`."""
        tokens = grid.flatten(0, 1)
        return tokens if self.index is None else tokens.index_select(0, self.index)

    def grid(self, tokens: Tensor, width: int) -> Tensor:
        """`[tokens, ...]` to `[rows, width, ...]`, the inverse of `flat`; the rest of the grid is zero."""
        row_count = len(self.lengths)
        if self.index is None:
            return tokens.unflatten(0, (row_count, width))
        flat_grid = tokens.new_zeros((row_count * width, *tokens.shape[1:]))
        return flat_grid.index_copy(0, self.index, tokens).unflatten(0, (row_count, width))


def first(lengths: Tensor, width: int) -> Tensor:
    """Bool `[rows, width]`, True for the first `lengths` elements of each row."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]
