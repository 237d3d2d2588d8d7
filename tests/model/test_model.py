"""The encoder-decoder as a whole: what may look at what, what padding may change, what the loss is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openba.accounting.flops import parameters
from openba.model.model import IGNORE, OpenBAModel
from openba.recipes.model import ModelRecipe

VOCAB, PAD = 128, 0
RECIPE = ModelRecipe(
    d_model=32, num_heads=3, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=2, decoder_layers=3
)


def build(**fields: Any) -> OpenBAModel:
    torch.manual_seed(0)
    # A wider start than in training, so that a wrong connection moves the logits by more than noise.
    recipe = RECIPE.model_copy(update={"init_std": 0.1, **fields})
    return OpenBAModel(recipe, VOCAB, max_length=32).eval()


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: OpenBAModel, source: Tensor, mask: Tensor, decoder: Tensor) -> Tensor:
    hidden, _ = model.decode(decoder, model.memory(model.encode(source, mask)), mask)
    return model.logits(hidden)


def shifted(labels: Tensor) -> Tensor:
    first = torch.full((len(labels), 1), PAD)
    return torch.cat([first, labels[:, :-1].clamp(min=0)], 1)


def everything(source: Tensor) -> Tensor:
    return torch.ones_like(source, dtype=torch.bool)


@settings(deadline=None, max_examples=20)
@given(at=st.integers(0, 8), token=st.integers(3, VOCAB - 1))
def test_a_later_decoder_token_changes_no_earlier_logit(at: int, token: int) -> None:
    model, source, decoder = build(), ids(1, 6), ids(1, 9, seed=2)
    changed = decoder.clone()
    changed[0, at] = token if token != decoder[0, at] else 3 + (token - 2) % (VOCAB - 3)
    before, after = (logits(model, source, everything(source), d)[0] for d in (decoder, changed))
    torch.testing.assert_close(after[:at], before[:at], atol=1e-6, rtol=0)
    assert all((after[t] - before[t]).abs().max() > 1e-3 for t in range(at, 9))


def test_every_source_token_reaches_every_decoder_position() -> None:
    model, source, decoder = build(), ids(1, 6), ids(1, 4, seed=2)
    before = logits(model, source, everything(source), decoder)[0]
    for at in range(6):
        changed = source.clone()
        changed[0, at] = 3 + (source[0, at] - 2) % (VOCAB - 3)
        after = logits(model, changed, everything(source), decoder)[0]
        assert ((after - before).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("padding", [1, 20])
def test_padding_the_source_changes_nothing(padding: int) -> None:
    model, source, decoder = build(), ids(2, 6), ids(2, 9, seed=2)
    padded = F.pad(source, (0, padding), value=PAD)
    mask = F.pad(everything(source), (0, padding))
    plain = logits(model, source, everything(source), decoder)
    torch.testing.assert_close(logits(model, padded, mask, decoder), plain, atol=1e-5, rtol=1e-5)
    # What stands in the padding is not looked at either.
    padded[:, 6:] = ids(2, padding, seed=3)
    torch.testing.assert_close(logits(model, padded, mask, decoder), plain, atol=1e-5, rtol=1e-5)


def test_the_loss_is_plain_cross_entropy_and_knows_no_padding() -> None:
    model, source, labels = build(), ids(3, 6), ids(3, 9, seed=2)
    labels[1, 5:], labels[2, 1:] = IGNORE, IGNORE
    found = model(source, everything(source), shifted(labels), labels)
    assert found.dtype == torch.float32
    expected = F.cross_entropy(
        logits(model, source, everything(source), shifted(labels)).transpose(1, 2), labels, reduction="none"
    ).sum(1)
    torch.testing.assert_close(found, expected)
    wider = F.pad(labels, (0, 4), value=IGNORE)
    padded = F.pad(source, (0, 3), value=PAD), F.pad(everything(source), (0, 3))
    torch.testing.assert_close(model(*padded, shifted(wider), wider), found)
    alone = [
        model(source[i : i + 1], everything(source[:1]), shifted(labels)[i : i + 1], labels[i : i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone), found)


def gradients(model: OpenBAModel, *batch: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(*batch).sum()
    assert loss.isfinite()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_row_of_padding_is_finite_and_adds_no_gradient() -> None:
    model, source, labels = build(), ids(2, 6), ids(2, 4, seed=2)
    mask = everything(source)
    mask[1], source[1], labels[1] = False, PAD, IGNORE
    alone = gradients(model, source[:1], mask[:1], shifted(labels)[:1], labels[:1])
    both = gradients(model, source, mask, shifted(labels), labels)
    assert alone.keys() == both.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(both[name], gradient, atol=1e-6, rtol=1e-5)
    labels[1] = ids(4, seed=5)
    assert all(g.isfinite().all() for g in gradients(model, source, mask, shifted(labels), labels).values())


def test_a_batch_without_labels_has_loss_zero() -> None:
    source, labels = ids(2, 6), torch.full((2, 4), IGNORE)
    assert build()(source, everything(source), shifted(labels), labels).tolist() == [0.0, 0.0]


OPTIONS = {
    "norm": ["rmsnorm", "layernorm"],
    "sandwich": [True, False],
    "attention_bias": [True, False],
    "tie_embeddings": [True, False],
    "head_bias": [True, False],
}


@pytest.mark.parametrize("values", itertools.product(*OPTIONS.values()), ids=lambda v: "-".join(map(str, v)))
def test_every_form_trains_all_its_parameters(values: tuple[Any, ...]) -> None:
    model = build(**dict(zip(OPTIONS, values, strict=True)))
    assert sum(p.numel() for p in model.parameters()) == sum(parameters(model.recipe, VOCAB).values())
    source, labels = ids(2, 6), ids(2, 4, seed=2)
    found = gradients(model, source, everything(source), shifted(labels), labels)
    assert found.keys() == dict(model.named_parameters()).keys()
    # A key's bias shifts all scores of a query alike, so softmax takes it out: that one has no gradient.
    dead = [name for name, g in found.items() if not g.abs().max() > 1e-7 and not name.endswith("key.bias")]
    assert dead == []


def test_the_head_is_the_unscaled_embedding_if_tied() -> None:
    model, hidden = build(), torch.randn(2, 32)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embedding.weight.T)
    untied = build(tie_embeddings=False, head_bias=True)
    torch.nn.init.normal_(untied.head_bias)
    torch.testing.assert_close(untied.logits(hidden), hidden @ untied.head.weight.T + untied.head_bias)


def test_angles_stay_fp32_under_a_bf16_model() -> None:
    model = build().bfloat16()
    source, decoder = ids(1, 6), ids(1, 4, seed=2)
    found = logits(model, source, everything(source), decoder)
    assert model.embedding.weight.dtype == torch.bfloat16
    assert model._rotary.dtype == torch.float32
    assert found.dtype == torch.float32
    assert not any("rotary" in name for name in model.state_dict())
    torch.testing.assert_close(
        found, logits(build(), source, everything(source), decoder), atol=0.2, rtol=0.1
    )


def test_input_longer_than_the_training_length_works() -> None:
    model, source, decoder = build(), ids(1, 50), ids(1, 40, seed=2)
    found = logits(model, source, everything(source), decoder)
    torch.manual_seed(0)
    longer = OpenBAModel(model.recipe, VOCAB, max_length=64).eval()
    torch.testing.assert_close(found, logits(longer, source, everything(source), decoder))


def test_a_model_that_has_generated_can_still_train() -> None:
    model, source, labels = build(), ids(1, 6), ids(1, 4, seed=2)
    with torch.inference_mode():
        logits(model, source, everything(source), labels)
    assert gradients(model, source, everything(source), shifted(labels), labels)


def test_initial_weights_have_the_releases_widths() -> None:
    torch.manual_seed(0)
    model = OpenBAModel(ModelRecipe(**{**RECIPE.model_dump(), "d_model": 128}), VOCAB, 32)
    block = model.decoder[0]
    for weight, std in [
        (model.embedding.weight, 0.02),
        (block.cross_attention.query.weight, 0.02),
        (block.mlp.up.weight, 0.02),
        (block.cross_attention.output.weight, 0.02 / 6**0.5),
        (block.mlp.down.weight, 0.02 / 6**0.5),
        (model.encoder[0].self_attention.output.weight, 0.02 / 4**0.5),
    ]:
        assert weight.detach().std().item() == pytest.approx(std, rel=0.05)
