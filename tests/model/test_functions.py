"""Kernels of both device kinds against plain chains of torch; positions that are relative and exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from openba.model.cpu.cpu_kernels import CPUKernels
from openba.model.cuda.cuda_kernels import CUDAKernels
from openba.model.functions import rotary_table
from openba.model.kernels import Kernels

EPSILON = 1e-5
both_kernels = pytest.mark.parametrize("kernels", [CPUKernels(), CUDAKernels()], ids=["cpu", "plain"])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def plain_swiglu(packed: Tensor) -> Tensor:
    gate, up = packed.chunk(2, -1)
    return gate * gate.sigmoid() * up


def turned(x: Tensor, table: Tensor) -> Tensor:
    """Rotate-half: channel i turns with channel i + width / 2."""
    first, second = x.chunk(2, -1)
    cos, sin = table
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotate(kernels: Kernels, x: Tensor, table: Tensor) -> Tensor:
    """`[tokens, heads, kv]` as a query of `split_rotate`."""
    return kernels.split_rotate(torch.stack([x, x, x], -2), table[0], table[1])[0]


@both_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_norm_is_its_formula_and_so_are_its_gradients(kernels: Kernels, dtype: torch.dtype) -> None:
    x, weight, slope = randn(5, 7, 32, dtype=dtype) * 5 + 3, randn(32, seed=1, dtype=dtype), randn(5, 7, 32)
    for leaf in (x, weight):
        leaf.requires_grad_()
    found = kernels.rms_norm(x, weight, EPSILON)
    assert found.dtype == dtype
    torch.testing.assert_close(found, plain_rms_norm(x, weight))
    mine = torch.autograd.grad((found * slope).sum(), (x, weight))
    plain = torch.autograd.grad((plain_rms_norm(x, weight) * slope).sum(), (x, weight))
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@both_kernels
def test_rms_norm_in_half_precision_loses_its_rounding_only(kernels: Kernels) -> None:
    x, weight = randn(8, 256, dtype=torch.bfloat16) * 100, randn(256, seed=1, dtype=torch.bfloat16)
    expected = plain_rms_norm(x.float(), weight.float())
    torch.testing.assert_close(kernels.rms_norm(x, weight, EPSILON).float(), expected, atol=0, rtol=2**-7)
    # The mean of squares is beyond fp16.
    huge = torch.full((1, 256), 300.0, dtype=torch.float16)
    torch.testing.assert_close(
        kernels.rms_norm(huge, torch.ones(256, dtype=torch.float16), EPSILON).float(), torch.ones(1, 256)
    )


@both_kernels
def test_rms_norm_of_zeros_is_zero_and_its_gradient_finite(kernels: Kernels) -> None:
    x = torch.zeros(2, 16, requires_grad=True)
    found = kernels.rms_norm(x, torch.ones(16), EPSILON)
    found.sum().backward()
    assert not found.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@both_kernels
def test_swiglu_is_its_formula_in_every_precision(kernels: Kernels) -> None:
    packed = randn(6, 20) * 3
    torch.testing.assert_close(kernels.swiglu(packed), plain_swiglu(packed))
    narrow = packed.bfloat16()
    torch.testing.assert_close(
        kernels.swiglu(narrow).float(), plain_swiglu(narrow.float()), atol=0.02, rtol=0.02
    )


@both_kernels
def test_gradients_in_fp64(kernels: Kernels) -> None:
    x, weight = randn(3, 12, dtype=torch.float64), randn(12, seed=1, dtype=torch.float64)
    packed = randn(4, 2, 3, 6, seed=2, dtype=torch.float64)
    table = rotary_table(9, 6, 10_000.0).double().index_select(1, torch.tensor([8, 0, 3, 1]))
    for leaf in (x, weight, packed):
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: kernels.rms_norm(x, w, EPSILON), (x, weight))
    assert torch.autograd.gradcheck(kernels.swiglu, (x,))
    assert torch.autograd.gradcheck(lambda p: kernels.split_rotate(p, table[0], table[1]), (packed,))


@both_kernels
def test_query_key_and_value_come_out_of_each_heads_package(kernels: Kernels) -> None:
    # The release packs per head: query, key, value of head 0, then of head 1.
    rows = torch.arange(2 * 3 * 4.0)
    packed = rows.view(1, 2, 3, 4)
    query, key, value = kernels.split_rotate(packed, *rotary_table(1, 4, 10_000.0))
    assert query.tolist() == [[[0, 1, 2, 3], [12, 13, 14, 15]]]  # position 0 turns nothing
    assert key.tolist() == [[[4, 5, 6, 7], [16, 17, 18, 19]]]
    assert value.tolist() == [[[8, 9, 10, 11], [20, 21, 22, 23]]]


@both_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_query_and_key_turn_and_values_do_not(kernels: Kernels, dtype: torch.dtype) -> None:
    packed, table = randn(10, 3, 3, 8, dtype=dtype), rotary_table(10, 8, 10_000.0)
    query, key, value = kernels.split_rotate(packed, *table)
    assert {x.dtype for x in (query, key, value)} == {dtype}
    close = {} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
    torch.testing.assert_close(query.float(), turned(packed[..., 0, :].float(), table), **close)
    torch.testing.assert_close(key.float(), turned(packed[..., 1, :].float(), table), **close)
    assert torch.equal(value, packed[..., 2, :])


@both_kernels
@settings(deadline=None)
@given(query=st.integers(0, 400), key=st.integers(0, 400), shift=st.integers(0, 600))
def test_scores_depend_on_the_distance_only(kernels: Kernels, query: int, key: int, shift: int) -> None:
    table, q, k = rotary_table(1024, 32, 10_000.0), randn(1, 1, 32), randn(1, 1, 32, seed=1)

    def score(by: int) -> float:
        at = [table[:, [position + by]] for position in (query, key)]
        return float((rotate(kernels, q, at[0]) * rotate(kernels, k, at[1])).sum())

    assert score(shift) == pytest.approx(score(0), abs=1e-3)


@both_kernels
def test_rotation_pairs_the_halves(kernels: Kernels) -> None:
    # Rotate-half (the release), not interleaved: channel i turns with channel i + width / 2.
    x = torch.zeros(3, 1, 8)
    x[..., 1] = 1.0
    angle = torch.tensor(2 * 10_000.0 ** (-2 / 8))
    expected = torch.zeros(8)
    expected[1], expected[5] = angle.cos(), angle.sin()
    torch.testing.assert_close(rotate(kernels, x, rotary_table(3, 8, 10_000.0))[2, 0], expected)


@both_kernels
def test_rotation_keeps_the_length_and_position_zero(kernels: Kernels) -> None:
    x = randn(50, 3, 32)
    found = rotate(kernels, x, rotary_table(50, 32, 10_000.0))
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(found[0], x[0])


@both_kernels
def test_angles_are_fp32_whatever_turns(kernels: Kernels) -> None:
    table = rotary_table(2048, 128, 10_000.0)
    assert table.dtype == torch.float32
    x = randn(2048, 1, 128, dtype=torch.bfloat16)
    found = rotate(kernels, x, table)
    assert found.dtype == torch.bfloat16
    # Off by bf16's rounding of the result only; angles in bf16 would be off by radians at 2,000.
    torch.testing.assert_close(found.float(), rotate(kernels, x.float(), table), atol=0.02, rtol=0.01)


@both_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_gradients_the_results_are_the_same(kernels: Kernels, dtype: torch.dtype) -> None:
    # Then other calls are made: fewer of them.
    x, weight = randn(5, 12, dtype=dtype) * 5, randn(12, seed=1, dtype=dtype)
    packed, table = randn(7, 3, 3, 8, dtype=dtype), rotary_table(7, 8, 10_000.0)
    results = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            results.append(
                [
                    kernels.rms_norm(x, weight, EPSILON),
                    kernels.swiglu(x),
                    *kernels.split_rotate(packed, *table),
                ]
            )
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(a, b)


@both_kernels
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    bias=st.booleans(),
    wanted=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    turned_round=st.booleans(),
)
def test_a_product_is_torchs_forward_and_backward(
    kernels: Kernels,
    shape: list[int],
    sizes: tuple[int, int],
    bias: bool,
    wanted: tuple[bool, bool, bool],
    turned_round: bool,
) -> None:
    inputs, outputs = sizes
    x = randn(*shape, inputs)
    if turned_round:  # neither rows nor columns lie side by side
        x = randn(*shape, 2 * inputs)[..., ::2]
    tensors = [x, randn(outputs, inputs, seed=1), randn(outputs, seed=2) if bias else None]
    leaves = [
        [None if t is None else t.clone().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
        for _ in range(2)
    ]
    found, expected = kernels.linear(*leaves[0]), torch.nn.functional.linear(*leaves[1])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.requires_grad == expected.requires_grad
    if expected.requires_grad:
        for out in (found, expected):
            out.backward(randn(*expected.shape, seed=3).transpose(0, -1).contiguous().transpose(0, -1))
        for ours, theirs in zip(*leaves, strict=True):
            if ours is not None and theirs is not None and theirs.grad is not None:
                assert ours.grad is not None
                torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
                assert ours.grad.stride() == theirs.grad.stride()


@both_kernels
def test_torchs_counter_sees_the_products(kernels: Kernels) -> None:
    x, weight = randn(3, 4, 5), randn(7, 5, seed=1).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        kernels.linear(x, weight).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 12 * 5 * 7)  # x wants no gradient
    with FlopCounterMode(display=False) as counter:
        kernels.linear(x.requires_grad_(), weight).sum().backward()
    assert counter.get_total_flops() == 3 * (2 * 12 * 5 * 7)


@both_kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_products_of_other_precisions_are_torchs(kernels: Kernels, dtype: torch.dtype) -> None:
    x, weight = randn(3, 5, dtype=dtype), randn(7, 5, seed=1, dtype=dtype)
    assert torch.equal(kernels.linear(x, weight), torch.nn.functional.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.linear(x.float(), weight.float()).dtype == torch.bfloat16
