"""The parts of a block: positions that are relative and exact, attention as its formula says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openba.model.layers import Attention, SwiGLU, make_norm, padding_bias, rotary_table, rotate
from openba.recipes.model import ModelRecipe

# heads * kv_channels (48) is not d_model, as in the release.
RECIPE = ModelRecipe(
    d_model=32, num_heads=3, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=1
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(query=st.integers(0, 400), key=st.integers(0, 400), shift=st.integers(0, 600))
def test_scores_depend_on_the_distance_only(query: int, key: int, shift: int) -> None:
    table, q, k = rotary_table(1024, 32, 10_000.0), randn(1, 1, 1, 32), randn(1, 1, 1, 32, seed=1)

    def score(by: int) -> float:
        return float((rotate(q, table, query + by) * rotate(k, table, key + by)).sum())

    assert score(shift) == pytest.approx(score(0), abs=1e-3)


def test_rotation_pairs_the_halves() -> None:
    # Rotate-half (the release), not interleaved: channel i turns with channel i + width / 2.
    x = torch.zeros(1, 1, 3, 8)
    x[..., 1] = 1.0
    turned = rotate(x, rotary_table(3, 8, 10_000.0))[0, 0, 2]
    angle = torch.tensor(2 * 10_000.0 ** (-2 / 8))
    expected = torch.zeros(8)
    expected[1], expected[5] = angle.cos(), angle.sin()
    torch.testing.assert_close(turned, expected)


def test_rotation_keeps_the_length_and_position_zero() -> None:
    x = randn(2, 3, 50, 32)
    turned = rotate(x, rotary_table(64, 32, 10_000.0))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


def test_an_offset_is_a_later_position() -> None:
    table, x = rotary_table(64, 16, 10_000.0), randn(1, 2, 20, 16)
    torch.testing.assert_close(rotate(x[:, :, 7:], table, 7), rotate(x, table)[:, :, 7:])


def test_angles_are_fp32_whatever_turns() -> None:
    table = rotary_table(2048, 128, 10_000.0)
    assert table.dtype == torch.float32
    x = randn(1, 1, 2048, 128).bfloat16()
    turned = rotate(x, table)
    assert turned.dtype == torch.bfloat16
    # Off by bf16's rounding of the result only; angles in bf16 would be off by radians at 2,000.
    torch.testing.assert_close(turned.float(), rotate(x.float(), table), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(RECIPE.model_copy(update={"attention_bias": True})).eval()
    nn.init.normal_(layer.query.bias)
    table, x = rotary_table(16, 16, 10_000.0), randn(2, 7, 32)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    bias = None if causal else padding_bias(mask, torch.float32)
    found = layer(x, layer.project(x, table), table=table, bias=bias, causal=causal)

    def heads(y: Tensor) -> Tensor:
        return y.view(2, 7, 3, 16).transpose(1, 2)

    q, k = rotate(heads(layer.query(x)), table), rotate(heads(layer.key(x)), table)
    scores = q @ k.transpose(2, 3) / 4
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else ~mask[:, None, None, :]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    expected = layer.output((weights @ heads(layer.value(x))).transpose(1, 2).reshape(2, 7, 48))
    torch.testing.assert_close(found, expected)


def test_a_mask_of_padding_only_stays_finite() -> None:
    layer, x = Attention(RECIPE), randn(1, 5, 32)
    for dtype in (torch.float32, torch.bfloat16):
        typed = layer.to(dtype)
        bias = padding_bias(torch.zeros(1, 5, dtype=torch.bool), dtype)
        assert bias.dtype == dtype
        assert typed(x.to(dtype), typed.project(x.to(dtype)), bias=bias).isfinite().all()


def test_dropout_is_for_training_only() -> None:
    layer, x = Attention(RECIPE.model_copy(update={"dropout": 0.5})), randn(1, 5, 32)
    assert not torch.equal(layer(x, layer.project(x)), layer(x, layer.project(x)))
    layer.eval()
    torch.testing.assert_close(layer(x, layer.project(x)), layer(x, layer.project(x)))


def test_norms() -> None:
    x = randn(4, 32) * 5 + 3
    rms = make_norm(RECIPE)(x)
    torch.testing.assert_close(rms, x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    layer = make_norm(RECIPE.model_copy(update={"norm": "layernorm"}))
    torch.testing.assert_close(layer(x).mean(-1), torch.zeros(4), atol=1e-5, rtol=0)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_swiglu_gates_and_has_the_releases_width() -> None:
    layer, x = SwiGLU(RECIPE), randn(3, 32)
    gate = layer.gate(x)
    torch.testing.assert_close(layer(x), layer.down(gate * gate.sigmoid() * layer.up(x)))
    assert ModelRecipe(**{**RECIPE.model_dump(), "ffn": 16384, "ffn_multiple": 256}).ffn_inner == 11008
