"""The objectives: nothing is lost, counts and lengths are the paper's, randomness hangs on (seed, sample)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.data import denoise
from openba.data.denoise import Pair
from openba.data.tokenizer import Tokenizer
from openba.recipes.train import DenoiserRecipe, PrefixRecipe, TrainRecipe, UL2Recipe

STAGE1 = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe)
STAGE2 = load(CONFIGS / "pretrain" / "stage2.yaml", TrainRecipe)
# Encoder and decoder tokens of the paper's seven denoisers at 568 tokens: the release's table, S at 25 %.
LENGTHS = [(513, 114), (496, 97), (429, 144), (381, 380), (322, 321), (486, 87), (290, 289)]

denoisers = st.builds(
    DenoiserRecipe, mode=st.sampled_from("RX"), mean_span=st.integers(1, 64), ratio=st.floats(0.01, 0.99)
)


def ul2(**fields: object) -> UL2Recipe:
    assert isinstance(STAGE1.data, UL2Recipe)
    return STAGE1.data.model_copy(update=fields)


def corrupt(
    denoiser: DenoiserRecipe,
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    sample: int = 0,
    recipe: UL2Recipe | None = None,
) -> Pair:
    return denoise.corrupt(tokens, denoiser, recipe or ul2(), denoise.generator(1234, sample), tokenizer)


def text(length: int) -> np.ndarray:
    """Distinct ids of ordinary pieces, so that no order goes unnoticed."""
    return np.arange(300, 300 + length, dtype=np.int32)


def spans_of(ids: np.ndarray, tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Sentinel number -> the tokens up to the next sentinel, in the order they stand; -1: those before."""
    found: dict[int, list[int]] = {-1: []}
    for i in ids.tolist():
        if tokenizer.base <= i < tokenizer.base + 100:
            found[tokenizer.base + 99 - i] = []
        else:
            found[list(found)[-1]].append(i)
    return found


@given(length=st.integers(2, 600), denoiser=denoisers, sample=st.integers(0, 2**40))
def test_encoder_and_target_together_are_the_source(
    tokenizer: Tokenizer, length: int, denoiser: DenoiserRecipe, sample: int
) -> None:
    encoder, target = corrupt(denoiser, text(length), tokenizer, sample)
    assert encoder.dtype == target.dtype == np.int32
    assert encoder[0] == tokenizer.mode(denoiser.mode)
    assert encoder[-1] == target[-1] == tokenizer.eos
    kept, masked = spans_of(encoder[1:-1], tokenizer), spans_of(target[:-1], tokenizer)
    assert list(kept) == list(masked) == list(range(-1, len(kept) - 1))  # each sentinel once, rising
    rebuilt = kept[-1] + [i for k in range(len(kept) - 1) for i in masked[k] + kept[k]]
    assert rebuilt == text(length).tolist()
    assert masked.pop(-1) == kept[len(kept) - 2] == []  # the sample ends masked
    assert all(masked.values())
    noise = min(max(round(length * denoiser.ratio), 1), length - 1)
    assert sum(map(len, masked.values())) == noise
    wanted = max(1, round(noise / (denoiser.mean_span or 0)))
    assert len(masked) == min(wanted, noise, length - noise, 100)


@given(length=st.integers(2, 600), ratio=st.floats(0.01, 0.99))
def test_s_denoising_masks_the_end(tokenizer: Tokenizer, length: int, ratio: float) -> None:
    encoder, target = corrupt(DenoiserRecipe(mode="S", ratio=ratio), text(length), tokenizer)
    masked = max(1, round(length * ratio))
    first, tokens = tokenizer.sentinel(0), text(length).tolist()
    assert encoder.tolist() == [tokenizer.mode("S"), *tokens[: length - masked], first, tokenizer.eos]
    assert target.tolist() == [first, *tokens[length - masked :], tokenizer.eos]


@pytest.mark.parametrize(("index", "lengths"), list(enumerate(LENGTHS)))
def test_lengths_are_the_papers(tokenizer: Tokenizer, index: int, lengths: tuple[int, int]) -> None:
    denoiser = ul2().denoisers[index]
    for sample in range(20):
        pair = corrupt(denoiser, text(ul2().length), tokenizer, sample)
        assert tuple(map(len, pair)) == lengths
    assert lengths[0] <= STAGE1.encoder_length
    assert lengths[1] <= STAGE1.decoder_length


def test_the_releases_s_length_is_uniform(tokenizer: Tokenizer) -> None:
    recipe, tokens = ul2(s_length="uniform"), text(568)
    pairs = [corrupt(recipe.denoisers[2], tokens, tokenizer, sample, recipe) for sample in range(3000)]
    masked = [len(target) - 2 for _, target in pairs]
    assert (min(masked), max(masked)) == (1, 142)
    assert np.mean(masked) / 568 == pytest.approx(0.126, abs=0.003)
    assert {len(encoder) + len(target) for encoder, target in pairs} == {568 + 5}
    assert max(len(encoder) for encoder, _ in pairs) == STAGE1.encoder_length


def test_the_papers_s_length_is_a_quarter(tokenizer: Tokenizer) -> None:
    _, target = corrupt(ul2().denoisers[2], text(568), tokenizer)
    assert (len(target) - 2) / 568 == 0.25


def test_stage_two_is_half_and_half(tokenizer: Tokenizer) -> None:
    assert isinstance(STAGE2.data, PrefixRecipe)
    encoder, target = denoise.prefix(text(STAGE2.data.length), STAGE2.data, tokenizer)
    assert len(encoder) == STAGE2.encoder_length == 1024
    assert len(target) == 1 + 1021 + 1 <= STAGE2.decoder_length
    assert encoder[0] == tokenizer.mode("S")


def test_each_denoiser_gets_a_seventh() -> None:
    chosen = Counter(
        ul2().denoisers.index(denoise.choose(ul2(), denoise.generator(1234, i))) for i in range(7000)
    )
    assert all(count == pytest.approx(1000, abs=100) for count in chosen.values())
    modes = Counter(ul2().denoisers[index].mode for index in chosen)
    assert modes == {"R": 2, "S": 1, "X": 4}


def test_every_segmentation_is_as_likely(tokenizer: Tokenizer) -> None:
    # Four of eight tokens in two spans: 1 + 3, 2 + 2 or 3 + 1.
    denoiser = DenoiserRecipe(mode="X", mean_span=2, ratio=0.5)
    first = Counter(
        len(spans_of(corrupt(denoiser, text(8), tokenizer, sample)[1], tokenizer)[0])
        for sample in range(3000)
    )
    assert sorted(first) == [1, 2, 3]
    assert all(count == pytest.approx(1000, abs=90) for count in first.values())


def test_a_span_denoiser_without_a_span_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="R and X need mean_span"):
        corrupt(DenoiserRecipe(mode="R", ratio=0.15), text(50), tokenizer)


PROGRAM = """
import sys, numpy as np
from pathlib import Path
from openba.data import denoise
from openba.data.tokenizer import Tokenizer
from openba.recipes.train import DenoiserRecipe, UL2Recipe

tokenizer = Tokenizer.load(Path(sys.argv[1]))
rows = (DenoiserRecipe(mode="R", mean_span=3, ratio=0.15), DenoiserRecipe(mode="S", ratio=0.25))
recipe = UL2Recipe(objective="ul2", length=100, denoisers=rows, s_length="uniform")
for sample in (0, 1, 2**40):
    random = denoise.generator(7, sample)
    denoiser = denoise.choose(recipe, random)
    pair = denoise.corrupt(np.arange(300, 400), denoiser, recipe, random, tokenizer)
    print([ids.tolist() for ids in pair])
"""


def test_another_process_corrupts_the_same_way(tokenizer_folder: Path) -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, tokenizer_folder], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    lines = outputs[0].splitlines()
    assert outputs[0] == outputs[1]
    assert len(set(lines)) == 3  # and each sample differently
