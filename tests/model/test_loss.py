"""Cross entropy without logits: torch's own over the full logits, value and gradients alike."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from openba.accounting.operations import OperationCounter
from openba.model import logit_slices, loss
from openba.model.loss import linear_cross_entropy

WIDTH, VOCAB = 12, 200
CLOSE = {
    torch.float64: {"atol": 1e-9, "rtol": 1e-9},
    torch.float32: {"atol": 2e-5, "rtol": 1e-4},
    torch.bfloat16: {"atol": 0.1, "rtol": 0.03},
}


def leaves(
    tokens: int, bias: bool, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Hidden states, weight and bias to be differentiated, and labels."""
    draw = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, WIDTH), (VOCAB, WIDTH)] + [(VOCAB,)] * bias
    parts = [torch.randn(shape, generator=draw, dtype=torch.float64) * scale for shape in shapes]
    return tuple(x.to(dtype).requires_grad_() for x in parts), torch.randint(VOCAB, (tokens,), generator=draw)


def both(parts: tuple[Tensor, ...], labels: Tensor, scale: float = 0.5) -> list[tuple[Tensor, ...]]:
    """Loss and gradients of `scale` times the loss: ours, and torch's over fp32 (or fp64) logits."""
    bias = parts[2] if len(parts) > 2 else None
    mine = linear_cross_entropy(parts[0], parts[1], bias, labels)
    results = [(mine.detach(), *torch.autograd.grad(mine * scale, parts))]
    precise = torch.promote_types(parts[0].dtype, torch.float32)
    exact = [part.detach().to(precise).requires_grad_() for part in parts]
    plain = F.cross_entropy(F.linear(*exact), labels, reduction="sum")
    return [*results, (plain.detach(), *torch.autograd.grad(plain * scale, exact))]


def assert_alike(parts: tuple[Tensor, ...], labels: Tensor) -> None:
    mine, plain = both(parts, labels)
    assert mine[0].dtype == torch.promote_types(parts[0].dtype, torch.float32)
    assert [gradient.dtype for gradient in mine[1:]] == [part.dtype for part in parts]
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, **CLOSE[parts[0].dtype])


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 150),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_torchs_cross_entropy(tokens: int, bias: bool, dtype: torch.dtype) -> None:
    assert_alike(*leaves(tokens, bias, dtype))


@pytest.mark.parametrize("bias", [False, True])
def test_many_slices_are_as_one(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    whole = both(*leaves(50, bias))[0]
    monkeypatch.setitem(logit_slices.SLICE_ELEMENTS, "cpu", 7 * VOCAB)
    monkeypatch.setattr(logit_slices, "FEWEST_TOKENS", 1)
    assert len(loss.slices(50, VOCAB, "cpu")) == 8
    for a, b in zip(both(*leaves(50, bias))[0], whole, strict=True):
        torch.testing.assert_close(a, b)
    assert_alike(*leaves(50, bias))


@pytest.mark.parametrize("bias", [False, True])
def test_bf16_loses_the_rounding_of_its_logits_only(bias: bool) -> None:
    assert_alike(*leaves(80, bias, torch.bfloat16, scale=0.5))


def test_the_weights_gradient_is_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    # Equal tokens in many slices: a sum in bf16 would stop growing at 2^8 times one slice's share.
    monkeypatch.setitem(logit_slices.SLICE_ELEMENTS, "cpu", 1)
    monkeypatch.setattr(logit_slices, "FEWEST_TOKENS", 1)
    hidden = torch.ones(2**11, 1, dtype=torch.bfloat16)
    weight = torch.zeros(4, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, None, torch.zeros(2**11, dtype=torch.int64)).backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-1536, 512, 512, 512]


def test_logits_of_1e4_are_exact_and_finite() -> None:
    (hidden, weight, bias), labels = leaves(20, True)
    with torch.no_grad():
        bias += 1e4  # the same for every word: changes nothing
    mine, plain = both((hidden, weight, bias), labels)
    assert all(x.isfinite().all() for x in mine)
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=1e-3)
    with torch.no_grad():
        bias[0] += 1e4  # one word takes all
        others, right = (
            float(linear_cross_entropy(hidden, weight, bias, torch.full((20,), word))) for word in (3, 0)
        )
    assert others / 20 == pytest.approx(1e4, rel=1e-2)
    assert right == 0


def test_no_token_is_loss_zero_and_gradient_zero() -> None:
    parts, labels = leaves(0, True)
    found = linear_cross_entropy(*parts, labels)
    found.backward()
    assert float(found.detach()) == 0
    assert parts[0].grad is not None
    assert parts[0].grad.shape == (0, WIDTH)
    assert all(part.grad is not None and not part.grad.any() for part in parts)


def test_without_gradients_there_are_none_and_no_work_for_them() -> None:
    parts, labels = leaves(9, True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = linear_cross_entropy(*parts, labels)
    assert counter.get_total_flops() == 2 * 9 * WIDTH * VOCAB
    assert not found.requires_grad
    torch.testing.assert_close(found, linear_cross_entropy(*parts, labels).detach())


def test_a_second_backward_pass_is_refused() -> None:
    parts, labels = leaves(9, False)
    found = linear_cross_entropy(*parts, None, labels)
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by an earlier backward pass"):
        found.backward()


@settings(deadline=None, max_examples=20)
@given(
    scale=st.floats(1e-4, 1e4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    one_slice=st.booleans(),
)
def test_a_scale_known_before_changes_no_gradient(scale: float, dtype: torch.dtype, one_slice: bool) -> None:
    parts, labels = leaves(70, True, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(logit_slices.SLICE_ELEMENTS, "cpu", (70 if one_slice else 30) * VOCAB)
        patch.setattr(logit_slices, "FEWEST_TOKENS", 1)
        ours = linear_cross_entropy(*parts, labels, gradient_scale=torch.tensor(scale)) * scale
        found = torch.autograd.grad(ours, parts)
        expected = torch.autograd.grad(linear_cross_entropy(*parts, labels) * scale, parts)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a / scale, b / scale, **CLOSE[dtype])


def test_fp16_keeps_probabilities_that_it_cannot_write() -> None:
    # Two words far below the likeliest: p = 1e-8, which fp16 rounds to zero; scaled, it does not.
    logit = math.log(1e-8)
    weight = torch.tensor([[0.0], [logit], [logit]], dtype=torch.float16, requires_grad=True)
    hidden = torch.ones(1, 1, dtype=torch.float16)
    label = torch.zeros(1, dtype=torch.int64)
    scale = 2.0**14
    losses = [
        linear_cross_entropy(hidden, weight, None, label, gradient_scale=known)
        for known in (None, torch.tensor(scale))
    ]
    gradients = [torch.autograd.grad(each * scale, weight)[0] for each in losses]
    assert gradients[0].flatten().tolist()[1:] == [0, 0]  # what narrowing before scaling loses
    expected = torch.tensor(logit, dtype=torch.float16).float().exp() * scale
    torch.testing.assert_close(gradients[1].flatten()[1:].float(), expected.expand(2), rtol=2e-3, atol=0)


def test_bytes_beyond_the_products_of_the_papers_head() -> None:
    """1,056 target tokens, as four packed rows of Stage I; the sum in fp32 and its scaling took 46 GB."""
    tokens, words, width = 1_056, 250_368, 4_096
    hidden, weight = (
        torch.zeros(rows, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for rows in (tokens, words)
    )
    labels = torch.zeros(tokens, dtype=torch.int64, device="meta")
    with OperationCounter() as counter:
        scale = torch.zeros((), device="meta")
        (linear_cross_entropy(hidden, weight, None, labels, gradient_scale=scale) * scale).backward()
    assert counter.parts["product"].flops == 3 * 2 * tokens * words * width
    assert counter.parts["other"].bytes < 8e9
