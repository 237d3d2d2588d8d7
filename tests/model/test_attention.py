"""Attention keeps fp32 probabilities in every precision, and rows apart in every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openba.model.attention import attend
from openba.model.cpu.cpu_attention import attend_in_one_node
from openba.model.functions import rotary_table
from openba.model.layers import SelfAttention
from openba.model.plain_attention import attend_by_grid, attend_by_row
from openba.model.rows import Rows, first
from openba.recipes.architecture import Architecture

HEADS, KV = 2, 16
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def in_one_node(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, memory: Rows, causal: bool, dropout: float
) -> Tensor:
    """The CPU's node, with the arguments of the other forms."""
    assert not dropout
    return attend_in_one_node(query, key, value, rows, memory, causal)


FORMS = [
    (Rows.ragged, attend_by_row),
    (Rows.ragged, in_one_node),
    (Rows.padded, attend_by_row),
    (Rows.padded, in_one_node),
    (Rows.padded, attend_by_grid),
]


def tensors(tokens: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, HEADS, KV, generator=draw) for _ in range(3)]


def scaled(tokens: int, scale: float, spread: bool) -> list[Tensor]:
    """Queries and keys whose scores reach `scale`: spread out to it, or close together around it."""
    query, key, value = tensors(tokens)
    if spread:
        largest = (torch.einsum("qhc,khc->hqk", query, key) / KV**0.5).abs().max()
        return [query * (scale / largest) ** 0.5, key * (scale / largest) ** 0.5, value]
    query[..., 0] = key[..., 0] = (scale * KV**0.5) ** 0.5
    return [query, key, value]


def eager(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Plain attention of one row in fp32; bool `[queries, keys]` says who may look where."""
    scores = torch.einsum("qhc,khc->hqk", query.float(), key.float()) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khc->qhc", weights, value.float())


@pytest.mark.parametrize("spread", [True, False], ids=["spread", "close"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_probabilities_are_fp32_up_to_scores_of_1e4(dtype: torch.dtype, scale: float, spread: bool) -> None:
    length, real = 24, 17
    query, key, value = (x.to(dtype) for x in scaled(length, scale, spread))
    mask = first(torch.tensor([real]), length)
    whole, padded = Rows.padded(torch.ones_like(mask)), Rows.padded(mask)
    everything = torch.ones(length, length, dtype=torch.bool)
    masked = everything.clone()
    masked[:, real:] = False
    expected = eager(query, key, value, everything), eager(query, key, value, masked)
    # Rounding of values and of the result, and of fp32 scores, which at 1e4 are 1e-3 apart.
    close = {"atol": 4 * ROUNDING[dtype] + 1e-6 * scale, "rtol": 2 * ROUNDING[dtype]}
    for dropout in (0.0, 1e-12):  # the second takes the path that dropout takes
        found = attend(query, key, value, whole, whole, dropout=dropout)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected[0], **close)
        by_mask = attend_by_grid(query, key, value, padded, padded, False, dropout)
        torch.testing.assert_close(by_mask.float(), expected[1], **close)
        by_row = attend_by_row(query, key, value, padded, padded, False, dropout)
        torch.testing.assert_close(by_row[:real].float(), expected[1][:real], **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_in_half_precision_would_have_been_seen(dtype: torch.dtype) -> None:
    query, key, value = (x.to(dtype) for x in scaled(24, 1e4, spread=False))
    scores = (torch.einsum("qhc,khc->hqk", query.float(), key.float()) / KV**0.5).to(dtype)
    half = torch.einsum("hqk,khc->qhc", scores.float().softmax(-1), value.float())
    exact = eager(query, key, value, torch.ones(24, 24, dtype=torch.bool))
    assert (half - exact).abs().max() > 0.5


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_at_high_scores_are_those_of_fp32_eager(causal: bool) -> None:
    seen = torch.ones(24, 24, dtype=torch.bool)
    seen, rows = (seen.tril() if causal else seen), Rows.padded(torch.ones(1, 24, dtype=torch.bool))
    slope, gradients = torch.randn(24, HEADS, KV), []
    for kind in ("fused", "eager"):
        parts = [x.requires_grad_() for x in scaled(24, 100.0, spread=True)]
        q, k, v = parts
        out = attend(q, k, v, rows, rows, causal=causal) if kind == "fused" else eager(q, k, v, seen)
        gradients.append(torch.autograd.grad((out * slope).sum(), parts))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


counts = st.integers(1, 4).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n) for _ in range(2)])
)


@settings(deadline=None, max_examples=30)
@given(counts=counts, causal=st.booleans(), seed=st.integers(0, 9))
def test_every_layout_is_eager_row_by_row(
    counts: tuple[list[int], list[int]], causal: bool, seed: int
) -> None:
    """Ragged, padded by row and padded by grid: one result, one gradient, at every real token."""
    lengths = [torch.tensor(counts[0]), torch.tensor(counts[0] if causal else counts[1])]
    assume(all(int(n.max()) for n in lengths))
    masks = [first(n, int(n.max())) for n in lengths]
    masks.append(masks[1])
    grids = [
        tensors(mask.numel(), seed)[i].unflatten(0, mask.shape).requires_grad_()
        for i, mask in enumerate(masks)
    ]
    expected = []
    for q, k, v, n, m in zip(*grids, *(n.tolist() for n in lengths), strict=True):
        seen = torch.ones(n, m, dtype=torch.bool)
        expected.append(eager(q[:n], k[:m], v[:m], seen.tril() if causal else seen) if m else 0 * q[:n])
    slopes = torch.autograd.grad(torch.cat(expected).square().sum(), grids)
    for layout, function in FORMS:
        rows, memory = (layout(mask) for mask in masks[:2])
        parts = [x.flat(grid) for x, grid in zip((rows, memory, memory), grids, strict=True)]
        found = rows.split(function(*parts, rows, memory, causal, 0.0))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        mine = torch.autograd.grad(torch.cat(found).square().sum(), grids)
        for a, b in zip(mine, slopes, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    ("layout", "function"), FORMS, ids=["ragged", "ragged-node", "padded", "padded-node", "grid"]
)
def test_a_row_without_a_key_gives_zeros_and_zero_gradients(
    dtype: torch.dtype, layout: Callable[[Tensor], Rows], function: Callable[..., Tensor]
) -> None:
    masks = torch.ones(2, 3, dtype=torch.bool), first(torch.tensor([4, 0]), 4)
    rows, memory = Rows.padded(masks[0]), layout(masks[1])
    query, key, value = (tensors(n)[i].to(dtype) for i, n in enumerate((6, 8, 8)))
    key, value = memory.flat(key.unflatten(0, (2, 4))), memory.flat(value.unflatten(0, (2, 4)))
    parts = [x.detach().requires_grad_() for x in (query, key, value)]
    found = function(*parts, rows, memory, False, 0.0)
    assert not found[3:].any()
    assert found[:3].isfinite().all()
    found.float().sum().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in parts)
    assert not parts[0].grad[3:].any()
    assert parts[0].grad[:3].any()
    assert not parts[1].grad[4:].any()
    assert not parts[2].grad[4:].any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_causal_queries_see_nothing_later(dropout: float) -> None:
    query, key, value = tensors(10)
    rows = Rows.padded(torch.ones(2, 5, dtype=torch.bool))
    before = []
    for change in (0.0, 100.0):
        key[[4, 9]] += change
        value[[4, 9]] += change
        torch.manual_seed(0)
        before.append(attend(query, key, value, rows, rows, causal=True, dropout=dropout))
    earlier = [0, 1, 2, 3, 5, 6, 7, 8]
    torch.testing.assert_close(before[0][earlier], before[1][earlier])
    assert not torch.equal(before[0][[4, 9]], before[1][[4, 9]])


def test_the_whole_layer_is_its_formula() -> None:
    # heads * kv_channels (48) is not hidden_size, as in the release.
    shape = Architecture(
        vocab_size=8, hidden_size=32, kv_channels=16, num_heads=3, ffn_hidden_size=64, num_layers=1,
        num_decoder_layers=1, add_qkv_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    layer, x = SelfAttention(shape).eval(), torch.randn(7, 32)
    nn.init.normal_(layer.qkv.bias)
    table, rows = rotary_table(7, 16, 10_000.0), Rows.padded(torch.ones(1, 7, dtype=torch.bool))
    found = layer.o(attend(*layer.project(x, table), rows, rows).flatten(1))

    weight, bias = layer.qkv.weight.view(3, 3, 16, 32), layer.qkv.bias.view(3, 3, 16)
    query, key, value = (
        torch.einsum("hcw,tw->thc", weight[:, i], x) + bias[:, i] for i in range(3)
    )  # packed per head: query, key, value

    def turned(y: Tensor) -> Tensor:
        real, imaginary = y.chunk(2, -1)
        angle = torch.complex(table[0], table[1])
        product = torch.complex(real, imaginary) * angle
        return torch.cat([product.real, product.imag], -1)

    everything = torch.ones(7, 7, dtype=torch.bool)
    expected = layer.o(eager(turned(query), turned(key), value, everything).flatten(1))
    torch.testing.assert_close(found, expected)


def test_ranks_that_share_heads_draw_other_dropout_and_go_on_alike() -> None:
    query = key = value = torch.ones(6, 2, 16)
    rows = Rows.padded(torch.ones(1, 6, dtype=torch.bool))

    def drawn(stream: int | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        mixed = attend(query, key, value, rows, rows, dropout=0.5, dropout_stream=stream)
        return mixed, torch.rand(4)

    found = [drawn(stream) for stream in (0, 1, 0)]
    assert not torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][1], found[1][1])  # dropout of what is whole on both stays the same
