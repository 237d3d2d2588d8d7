"""The encoder-decoder as a whole: what may look at what, what padding may change, what the loss is."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openba.accounting.flops import parameters
from openba.model.flat_batch import FlatBatch
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.model.rows import Rows
from openba.recipes.model import ModelRecipe

VOCAB, PAD = 128, 0
RECIPE = ModelRecipe(
    d_model=32, num_heads=3, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=2, decoder_layers=3,
    positions=32, init_std=0.1,
)  # fmt: skip
"""A wider start than in training, so that a wrong connection moves the logits by more than noise."""


def build(**fields: Any) -> OpenBAModel:
    torch.manual_seed(0)
    return OpenBAModel(RECIPE.model_copy(update=fields).architecture(VOCAB)).eval()


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: OpenBAModel, source: Tensor, mask: Tensor, decoder: Tensor) -> Tensor:
    target = Rows.padded(everything(decoder))
    hidden = model.hidden(source, Rows.ragged(mask), decoder, target)
    return target.grid(model.logits(hidden), decoder.shape[1])


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
    labels[0, 2] = IGNORE  # a hole: no loss there, yet the decoder reads it
    batch = source, everything(source), shifted(labels), labels
    found = model.loss(*batch)
    assert found.dtype == torch.float32
    expected = F.cross_entropy(logits(model, *batch[:3]).transpose(1, 2), labels, reduction="sum")
    torch.testing.assert_close(found, expected)
    wider = F.pad(labels, (0, 4), value=IGNORE)
    padded = F.pad(source, (0, 3), value=PAD), F.pad(everything(source), (0, 3))
    torch.testing.assert_close(model.loss(*padded, shifted(wider), wider), found)
    alone = [model.loss(*(part[i : i + 1] for part in batch)) for i in range(3)]
    torch.testing.assert_close(torch.stack(alone).sum(), found)


def gradients(model: OpenBAModel, *batch: Tensor, padded: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model.loss(*batch, padded=padded)
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
    assert build().loss(source, everything(source), shifted(labels), labels).item() == 0.0


OPTIONS = {
    "norm": ["rmsnorm", "layernorm"],
    "sandwich": [True, False],
    "attention_bias": [True, False],
    "tie_embeddings": [True, False],
    "head_bias": [True, False],
}


@pytest.mark.parametrize("values", itertools.product(*OPTIONS.values()), ids=lambda v: "-".join(map(str, v)))
def test_every_form_trains_all_its_parameters(values: tuple[Any, ...]) -> None:
    fields = dict(zip(OPTIONS, values, strict=True))
    model, recipe = build(**fields), RECIPE.model_copy(update=fields)
    assert sum(p.numel() for p in model.parameters()) == sum(parameters(recipe, VOCAB).values())
    source, labels = ids(2, 6), ids(2, 4, seed=2)
    found = gradients(model, source, everything(source), shifted(labels), labels)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert [name for name, g in found.items() if not g.abs().max() > 1e-7] == []


def test_the_head_is_the_unscaled_embedding_if_tied() -> None:
    model, hidden = build(), torch.randn(2, 32)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.shared_embedding.weight.T)
    untied = build(tie_embeddings=False, head_bias=True)
    torch.nn.init.normal_(untied.lm_head.bias)
    torch.testing.assert_close(untied.logits(hidden), hidden @ untied.lm_head.weight.T + untied.lm_head.bias)


def test_angles_stay_fp32_under_a_bf16_model() -> None:
    model = build().bfloat16()
    source, decoder = ids(1, 6), ids(1, 4, seed=2)
    found = logits(model, source, everything(source), decoder)
    assert model.shared_embedding.weight.dtype == torch.bfloat16
    assert model.rotary_angles(torch.device("cpu")).dtype == torch.float32
    assert found.dtype == torch.float32
    assert not any("rotary" in name for name in model.state_dict())
    torch.testing.assert_close(
        found, logits(build(), source, everything(source), decoder), atol=0.2, rtol=0.1
    )


def test_input_longer_than_the_rotary_table_is_refused() -> None:
    model, source, labels = build(), ids(2, 33), ids(2, 4, seed=2)
    mask = everything(source)
    mask[0, 20:] = False
    with pytest.raises(ValueError, match=r"^input row 1: 33 tokens are more than the model's 32 positions$"):
        model.loss(source, mask, shifted(labels), labels)
    mask[1, 32:] = False  # the tokens count, not the width
    assert model.loss(source, mask, shifted(labels), labels).isfinite()
    longer = ids(2, 33, seed=2)
    with pytest.raises(ValueError, match=r"^decoder input row 0: 33 tokens are more than"):
        model.loss(source, mask, shifted(longer), longer)


def test_a_model_that_has_generated_can_still_train() -> None:
    model, source, labels = build(), ids(1, 6), ids(1, 4, seed=2)
    with torch.inference_mode():
        logits(model, source, everything(source), labels)
    assert gradients(model, source, everything(source), shifted(labels), labels)


def test_initial_weights_have_the_releases_widths() -> None:
    model = build(d_model=128, init_std=0.02, attention_bias=True, norm="layernorm")
    encoder, decoder = model.encoder.block[1], model.decoder.block[0]
    for weight, std in [
        (model.shared_embedding.weight, 0.02),
        (encoder.self_attn.qkv.weight, 0.02),
        (decoder.inter_attn.q.weight, 0.02),
        (decoder.mlp.fc_in.weight, 0.02),
        (decoder.inter_attn.o.weight, 0.02 / 6**0.5),
        (decoder.mlp.fc_out.weight, 0.02 / 6**0.5),
        (encoder.self_attn.o.weight, 0.02 / 4**0.5),
    ]:
        assert weight.detach().std().item() == pytest.approx(std, rel=0.05)
    vectors = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 1}
    assert vectors
    for name, vector in vectors.items():
        assert torch.equal(vector, torch.full_like(vector, float("norm" in name and name.endswith("weight"))))


def initial(width: int, **fields: Any) -> OpenBAModel:
    """A model as a training begins with it, whatever its width."""
    return build(d_model=width, num_heads=width // 16, ffn=4 * width, init_std=None, **fields)


@settings(deadline=None, max_examples=8)
@given(width=st.sampled_from([32, 64, 128, 256]))
def test_an_initial_model_guesses_nearly_evenly_and_learns_everywhere(width: int) -> None:
    model = initial(width)
    source, labels = ids(8, 12), ids(8, 8, seed=2)
    loss = model.loss(source, everything(source), shifted(labels), labels) / labels.numel()
    # Half a nat above even odds for logits of unit variance; a tied head also favours the token it has read.
    assert abs(loss.item() - math.log(VOCAB)) < 2
    found = gradients(model, source, everything(source), shifted(labels), labels)
    norms = {n: g.norm().item() / found["shared_embedding.weight"].norm().item() for n, g in found.items()}
    weak = {name: norm for name, norm in norms.items() if found[name].dim() > 1 and norm < 0.01}
    assert weak == {}


@settings(deadline=None, max_examples=8)
@given(width=st.sampled_from([32, 64, 128, 256]))
def test_a_token_is_seen_beside_the_sandwich_norms_output(width: int) -> None:
    # Unscaled embeddings of 0.02 are a fiftieth of it: what the encoder says of all tokens is the same.
    def likeness(model: OpenBAModel) -> float:
        rows = Rows.ragged(everything(source := ids(1, 24)))
        encoded = F.normalize(model.encode(rows.flat(source), rows), dim=-1)
        return ((encoded @ encoded.T).sum() / encoded.shape[0] ** 2).item()

    assert likeness(initial(width)) < 0.6
    assert likeness(initial(width)) < likeness(initial(width, scale_embedding=False)) - 0.1


def test_embeddings_are_scaled_on_their_way_in_only() -> None:
    scaled, plain = build(), build(scale_embedding=False)
    assert scaled.architecture.embedding_scale == pytest.approx(32**0.5)
    torch.testing.assert_close(scaled.embed(ids(7)), 32**0.5 * plain.embed(ids(7)))
    hidden = torch.randn(2, 32)
    assert torch.equal(scaled.logits(hidden), plain.logits(hidden))


def test_without_a_number_initial_weights_follow_the_width() -> None:
    assert build(d_model=64, init_std=None).shared_embedding.weight.std().item() == pytest.approx(
        0.125, rel=0.05
    )


def test_dropout_is_for_training_only() -> None:
    model, source, labels = build(dropout=0.5), ids(2, 6), ids(2, 4, seed=2)
    batch = source, everything(source), shifted(labels), labels
    still = build().loss(*batch)
    assert torch.equal(model.loss(*batch), still)
    model.train()
    assert not torch.equal(model.loss(*batch), model.loss(*batch))


recipes = st.builds(
    lambda heads, kv, ffn, depths, **fields: RECIPE.model_copy(
        update={"num_heads": heads, "kv_channels": kv, "ffn": ffn, **depths, **fields}
    ),
    heads=st.sampled_from([1, 3]),
    kv=st.sampled_from([4, 16]),
    ffn=st.sampled_from([24, 64]),
    depths=st.fixed_dictionaries({"encoder_layers": st.integers(1, 2), "decoder_layers": st.integers(1, 3)}),
    **{name: st.sampled_from(values) for name, values in OPTIONS.items()},
)
lengths = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=4)


def ragged_batch(counts: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A padded batch of rows with so many source and target tokens; none is allowed."""
    source, labels = ids(len(counts), 9), ids(len(counts), 7, seed=2)
    mask = torch.arange(9) < torch.tensor([s for s, _ in counts])[:, None]
    labels[torch.arange(7) >= torch.tensor([t for _, t in counts])[:, None]] = IGNORE
    return source, mask, shifted(labels), labels


@settings(deadline=None, max_examples=15)
@given(recipe=recipes, counts=lengths)
def test_ragged_and_padded_are_one(recipe: ModelRecipe, counts: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    model, batch = OpenBAModel(recipe.architecture(VOCAB)), ragged_batch(counts)
    torch.testing.assert_close(model.loss(*batch), model.loss(*batch, padded=True), atol=1e-4, rtol=1e-5)
    ragged, padded = (gradients(model, *batch, padded=form) for form in (False, True))
    assert ragged.keys() == padded.keys()
    for name, gradient in ragged.items():
        torch.testing.assert_close(gradient, padded[name], atol=1e-4, rtol=1e-4, msg=name)


@settings(deadline=None, max_examples=10)
@given(recipe=recipes, counts=lengths)
def test_gradients_are_those_of_fp64_and_of_differences(
    recipe: ModelRecipe, counts: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model, batch = OpenBAModel(recipe.architecture(VOCAB)), ragged_batch([(4, 3), *counts])
    exact = copy.deepcopy(model).double()
    single, double = gradients(model, *batch), gradients(exact, *batch)
    for name, gradient in double.items():
        assert gradient.dtype == torch.float64
        bound = 1e-5 * float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(single[name].double(), gradient, atol=bound, rtol=1e-4, msg=name)
    # And the loss moves along a random direction as the gradient says.
    direction = {name: torch.randn_like(gradient) for name, gradient in double.items()}
    slope = sum(float((double[name] * direction[name]).sum()) for name in double)
    flat = FlatBatch.lay_out(*batch, vocab=exact.architecture.vocab_size)
    step, losses = 1e-7, []
    for sign in (1, -1):
        with torch.no_grad():
            moved = {name: p + sign * step * direction[name] for name, p in exact.named_parameters()}
            losses.append(float(torch.func.functional_call(exact, moved, (flat,))))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-5)
