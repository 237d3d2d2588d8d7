"""The layout of rows: whatever the mask, tokens go to their grid and back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openba.model.rows import Rows, first

widths = st.shared(st.integers(1, 7), key="width")
masks = widths.flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=5)
).map(torch.tensor)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5).map(torch.tensor)


def numbered(mask: Tensor) -> Tensor:
    """A grid of distinct values with two channels, none of them zero."""
    return torch.arange(1.0, 2 * mask.numel() + 1).view(*mask.shape, 2)


@given(masks)
def test_a_ragged_layout_holds_the_real_tokens_and_no_others(mask: Tensor) -> None:
    rows, grid = Rows.ragged(mask), numbered(mask)
    tokens = rows.flat(grid)
    assert torch.equal(tokens, grid[mask])
    assert torch.equal(rows.grid(tokens, mask.shape[1]), grid * mask[..., None])
    assert rows.lengths == tuple(mask.sum(-1).tolist())
    assert rows.full == bool(mask.all())
    positions = [p for row in mask for p in range(int(row.sum()))]
    assert rows.positions.tolist() == positions


@given(masks)
def test_split_and_join_of_a_ragged_layout(mask: Tensor) -> None:
    rows, grid = Rows.ragged(mask), numbered(mask)
    parts = rows.split(rows.flat(grid))
    assert len(parts) == len(mask)
    for part, row, real in zip(parts, grid, mask, strict=True):
        assert torch.equal(part, row[real])
    assert torch.equal(rows.join(list(parts)), rows.flat(grid))


@given(lengths)
def test_a_padded_layout_holds_every_place(counts: Tensor) -> None:
    width = max(1, int(counts.max()))
    mask = first(counts, width)
    rows, grid = Rows.padded(mask), numbered(mask)
    tokens = rows.flat(grid)
    assert torch.equal(tokens, grid.flatten(0, 1))
    assert torch.equal(rows.grid(tokens, width), grid)
    assert torch.equal(rows.mask, mask)
    assert rows.full == bool(mask.all())
    assert rows.positions.tolist() == list(range(width)) * len(counts)
    parts = rows.split(tokens)
    for part, row, count in zip(parts, grid, counts.tolist(), strict=True):
        assert torch.equal(part, row[:count])
    assert torch.equal(rows.join(list(parts)), (grid * mask[..., None]).flatten(0, 1))


@given(masks)
def test_gradients_go_back_to_the_places_they_came_from(mask: Tensor) -> None:
    rows, grid = Rows.ragged(mask), numbered(mask).requires_grad_()
    back = rows.grid(rows.join(list(rows.split(rows.flat(grid)))), mask.shape[1])
    (back * 3).sum().backward()
    assert torch.equal(grid.grad, (3.0 * mask[..., None]).expand_as(grid))
