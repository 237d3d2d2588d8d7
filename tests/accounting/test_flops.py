"""Parameter and FLOP counts: the published totals, and what torch itself counts on the real model."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operations.accounting import BASE, SHAPES, count_flops
from openba.accounting.flops import (
    forward_flops,
    parameters,
    recomputed_flops,
    run_flops,
    train_flops,
    useful_train_flops,
)
from openba.model.model import OpenBAModel
from openba.recipes.architecture import Recompute
from openba.recipes.model import ModelRecipe
from openba.recipes.train import InstructionRecipe, OptimRecipe, TrainRecipe, TrainStep

SHAPE = {"d_model": 4096, "num_heads": 40, "kv_channels": 128, "ffn": 16384}
PAPER = ModelRecipe(**SHAPE, encoder_layers=12, decoder_layers=36, positions=1027)
RELEASE = PAPER.model_copy(
    update={"norm": "layernorm", "sandwich": False, "attention_bias": True, "head_bias": True}
)
VOCAB = 250_368


def run(encoder_length: int, decoder_length: int, batch: int, tokens: str) -> TrainStep:
    train = TrainRecipe(
        data=InstructionRecipe(objective="instruction"),
        encoder_length=encoder_length,
        decoder_length=decoder_length,
        batch=batch,
        budget=tokens,
        optim=OptimRecipe(lr=1e-4),
        evaluate_every=100,
    )
    return TrainStep(model=RELEASE, train=train)


# What the released training scripts pad to, with the paper's batches and tokens; the FLOPs are an
# independent computation of the same convention, known to three digits.
STAGES = {
    "I": (run(570, 381, 4096, "300B tokens"), 3.90e13, 77_016, 1.231e22),
    "II": (run(1027, 1025, 1024, "40B tokens"), 9.51e13, 19_036, 1.853e21),
    "III": (run(1024, 256, 1024, "40B tokens"), 4.29e13, 30_518, 1.342e21),
}


def test_release_has_exactly_the_published_number_of_parameters() -> None:
    parts = parameters(RELEASE, VOCAB)
    assert sum(parts.values()) == 14_567_703_040
    assert parts["embedding"] == 1_025_507_328
    untied = parameters(RELEASE.model_copy(update={"tie_embeddings": False}), VOCAB)
    assert sum(untied.values()) == 15_593_210_368


def test_paper_form_differs_from_the_release_by_norms_and_biases_only() -> None:
    paper, release = parameters(PAPER, 250_203), parameters(RELEASE, VOCAB)
    assert PAPER.padded_vocab(250_203) == 250_240
    assert paper["embedding"] == 250_240 * 4096
    # 12 encoder blocks of 3 norms, 36 decoder blocks of 5, one per stack.
    assert paper["norms"] == (12 * 3 + 36 * 5 + 2) * 4096
    assert paper["head"] == 0
    assert release["encoder"] - paper["encoder"] == 12 * (3 * 5120 + 4096)
    assert sum(paper.values()) == pytest.approx(14.6e9, rel=0.005)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_figures(stage: str) -> None:
    step, per_sequence, steps, total = STAGES[stage]
    lengths = step.train.encoder_length, step.train.decoder_length
    assert train_flops(RELEASE, VOCAB, *lengths) == pytest.approx(per_sequence, rel=2e-3)
    assert abs(step.train.steps - steps) <= 1  # a partial last step is rounded up here
    assert run_flops(step, VOCAB) == pytest.approx(total, rel=1e-3)


def test_all_stages_take_1_55e22_flops() -> None:
    assert sum(run_flops(step, VOCAB) for step, *_ in STAGES.values()) == pytest.approx(1.551e22, rel=1e-3)


def test_paper_lengths_and_shares_of_stage_one() -> None:
    parts = forward_flops(PAPER, VOCAB, 570, 380)
    total = sum(parts.values())
    assert 3 * total == pytest.approx(38.96e12, rel=2e-4)
    assert parts["head"] / total == pytest.approx(0.060, abs=5e-4)
    feed_forward = PAPER.decoder_layers * 6 * 380 * 4096 * 11_008
    assert feed_forward / total == pytest.approx(0.285, abs=5e-4)
    assert train_flops(PAPER, VOCAB, 1024, 1024) == pytest.approx(94.90e12, rel=2e-4)
    assert train_flops(PAPER, VOCAB, 1024, 256) == pytest.approx(42.95e12, rel=2e-4)


tiny = st.builds(
    ModelRecipe,
    d_model=st.sampled_from([16, 48]),
    num_heads=st.sampled_from([1, 3]),
    kv_channels=st.sampled_from([4, 8]),
    ffn=st.sampled_from([24, 50]),
    ffn_multiple=st.just(8),
    encoder_layers=st.integers(1, 3),
    decoder_layers=st.integers(1, 3),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    sandwich=st.booleans(),
    attention_bias=st.booleans(),
    tie_embeddings=st.booleans(),
    head_bias=st.booleans(),
    vocab_multiple=st.sampled_from([8, 128]),
)


@settings(max_examples=20, deadline=None)
@given(recipe=tiny, vocab=st.integers(1, 300))
def test_count_is_the_built_models(recipe: ModelRecipe, vocab: int) -> None:
    with torch.device("meta"):
        model = OpenBAModel(recipe.architecture(vocab))
    assert sum(parameters(recipe, vocab).values()) == sum(p.numel() for p in model.parameters())


@settings(max_examples=5, deadline=None)
@given(recipe=tiny, s=st.integers(1, 9), t=st.integers(1, 9))
def test_formula_is_what_torch_counts(recipe: ModelRecipe, s: int, t: int) -> None:
    batch, model = 2, OpenBAModel(recipe.architecture(40))
    source, target = torch.ones(batch, s, dtype=torch.long), torch.ones(batch, t, dtype=torch.long)
    # The CPU's fused attention is not in torch's counter; the math backend is, product by product.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        inputs = (source, torch.ones_like(source, dtype=torch.bool), target, target)
        with torch.no_grad():
            model.loss(*inputs)
        forward = counter.get_total_flops()
    # With gradients the loss makes those of the head at once: only the sum of both passes is the formula's.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(*inputs).backward()
    assert forward == batch * sum(forward_flops(recipe, 40, s, t).values())
    assert counter.get_total_flops() == batch * train_flops(recipe, 40, s, t)


@pytest.mark.parametrize("name", SHAPES)
def test_training_of_six_shapes_is_what_torch_counts(name: str) -> None:
    ours, torchs = count_flops(ModelRecipe(**BASE | SHAPES[name]))
    assert ours == torchs


@given(st.lists(st.tuples(st.integers(0, 2048), st.integers(0, 2048)), max_size=20))
def test_useful_flops_are_the_sum_over_sequences(lengths: list[tuple[int, int]]) -> None:
    useful = useful_train_flops(PAPER, VOCAB, [s for s, _ in lengths], [t for _, t in lengths])
    assert useful == sum(train_flops(PAPER, VOCAB, s, t) for s, t in lengths)


def test_useful_flops_need_both_lengths_of_each_sequence() -> None:
    with pytest.raises(ValueError, match="3 encoder lengths but 2"):
        useful_train_flops(PAPER, VOCAB, [1, 2, 3], [1, 2])


def test_padding_takes_two_fifths_of_stage_ones_flops() -> None:
    # Lengths of the seven denoisers at 568 tokens (R 3 and 8, S 25 %, X 3, 8, 64 and 64), padded to 570/380.
    encoder, decoder = [513, 496, 429, 381, 322, 486, 290], [114, 97, 144, 380, 321, 87, 289]
    useful = useful_train_flops(PAPER, VOCAB, encoder, decoder)
    assert useful / (7 * train_flops(PAPER, VOCAB, 570, 380)) == pytest.approx(0.605, abs=5e-4)


def test_what_is_computed_again_is_what_torch_counts() -> None:
    """The counter sees the math backend: no scores again in a backward pass, and other products to keep."""
    recipe = ModelRecipe(**BASE | SHAPES["1+3, as OpenBA"])
    more = {kind: recomputed_flops(recipe, 40, [7, 7], [5, 5], kind) for kind in get_args(Recompute)}
    torchs = {}
    for kind in more:
        model, counter = count_flops(recipe, recompute=kind)
        torchs[kind] = counter - model
    scores = more["none"]  # half of attention's forward FLOPs: queries times keys
    assert scores > 0
    assert torchs["none"] == 0
    assert torchs["full"] == more["full"] - scores
    # Fused attention is one operation, so its second product is done again, too.
    assert torchs["attention"] == more["attention"] - scores - scores
    # ... and is kept whole as a product is; the math backend's two products are not known as attention.
    assert more["selective"] == scores
    assert torchs["selective"] == 2 * scores
