"""The objectives: nothing is lost, counts and lengths are the paper's, randomness hangs on (seed, sample)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openba.config import CONFIGS, load
from openba.data.denoise import Denoised, Denoising, philox, shuffled
from openba.recipes.train import DenoiserRecipe, PrefixRecipe, TrainRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer

PRETRAIN = CONFIGS / "pretrain"
STAGE1 = load(PRETRAIN / "stage1.yaml", TrainRecipe)
STAGE1_RELEASE = load(PRETRAIN / "stage1-release.yaml", TrainRecipe)
STAGE2 = load(PRETRAIN / "stage2.yaml", TrainRecipe)
STAGE2_RELEASE = load(PRETRAIN / "stage2-release.yaml", TrainRecipe)
# Encoder and decoder tokens at 568 tokens: the release's table, S at the paper's 25 %.
LENGTHS = [(513, 114), (496, 97), (429, 144), (381, 380), (322, 321), (486, 87), (290, 289)]
IGNORE = -100

denoisers = st.builds(
    DenoiserRecipe, mode=st.sampled_from("RX"), mean_span=st.integers(1, 64), ratio=st.floats(0.01, 0.99)
)
s_denoisers = st.builds(DenoiserRecipe, mode=st.just("S"), ratio=st.floats(0.01, 0.99))


def ul2(*rows: DenoiserRecipe, length: int = 568, **fields: object) -> UL2Recipe:
    return UL2Recipe(objective="ul2", length=length, denoisers=rows, **fields)


def text(rows: int, length: int) -> np.ndarray:
    """Distinct ids of ordinary pieces in a row, so that no order goes unnoticed."""
    return np.tile(np.arange(300, 300 + length, dtype=np.int32), (rows, 1))


def draw(recipe: UL2Recipe | PrefixRecipe, tokenizer: Tokenizer, samples: range, seed: int = 7) -> Denoised:
    windows = text(len(samples), recipe.length)
    return Denoising(recipe, tokenizer, IGNORE).batch(windows, np.array(samples), seed)


def pair(made: Denoised, row: int) -> tuple[list[int], list[int]]:
    encoder, labels = made.encoder[row], made.labels[row]
    return encoder[: made.encoder_lengths[row]].tolist(), labels[: made.target_lengths[row]].tolist()


def spans_of(ids: list[int], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Sentinel number -> the tokens up to the next sentinel, in the order they stand; -1: those before."""
    found: dict[int, list[int]] = {-1: []}
    for i in ids:
        if tokenizer.base <= i < tokenizer.base + 100:
            found[tokenizer.base + 99 - i] = []
        else:
            found[list(found)[-1]].append(i)
    return found


def masked_spans(made: Denoised, tokenizer: Tokenizer, denoiser: int) -> list[list[int]]:
    """Lengths of the masked spans of each sample that the denoiser made."""
    rows = np.flatnonzero(made.denoisers == denoiser)
    targets = (spans_of(pair(made, int(row))[1][:-1], tokenizer) for row in rows)
    return [[len(span) for number, span in found.items() if number >= 0] for found in targets]


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(2, 600),
    row=denoisers | s_denoisers,
    sample=st.integers(0, 2**62),
    seed=st.integers(0, 2**64 - 1),
    s_length=st.sampled_from(["fixed", "uniform"]),
)
def test_encoder_and_labels_together_are_the_source(
    tokenizer: Tokenizer, length: int, row: DenoiserRecipe, sample: int, seed: int, s_length: str
) -> None:
    recipe = ul2(row, length=length, s_length=s_length)
    made = draw(recipe, tokenizer, range(sample, sample + 1), seed)
    encoder, labels = pair(made, 0)
    assert encoder[0] == tokenizer.mode(row.mode)
    assert encoder[-1] == labels[-1] == tokenizer.eos
    kept, masked = spans_of(encoder[1:-1], tokenizer), spans_of(labels[:-1], tokenizer)
    assert list(kept) == list(masked) == list(range(-1, len(kept) - 1))  # each sentinel once, rising
    rebuilt = kept[-1] + [i for k in range(len(kept) - 1) for i in masked[k] + kept[k]]
    assert rebuilt == text(1, length)[0].tolist()
    assert masked.pop(-1) == kept[len(kept) - 2] == []  # the sample ends masked
    assert all(masked.values())
    noise = min(max(round(length * row.ratio), 1), length - 1)
    total = sum(map(len, masked.values()))
    assert total == noise or (row.mode == "S" and s_length == "uniform" and 1 <= total <= noise)
    wanted = 1 if row.mode == "S" else max(1, round(noise / (row.mean_span or 0)))
    assert len(masked) == min(wanted, noise, length - noise, 100)
    # Padded to the recipe's longest, and the decoder is the labels, shifted.
    assert (made.encoder.shape[1], made.labels.shape[1]) == recipe.longest
    assert (made.encoder[0, len(encoder) :] == tokenizer.pad).all()
    assert (made.labels[0, len(labels) :] == IGNORE).all()
    padding = [tokenizer.pad] * (made.labels.shape[1] - len(labels))
    assert made.decoder[0].tolist() == [tokenizer.pad, *labels[:-1], *padding]


@pytest.mark.parametrize("stage", [STAGE1, STAGE1_RELEASE], ids=["paper", "release"])
def test_lengths_are_the_releases_table(tokenizer: Tokenizer, stage: TrainRecipe) -> None:
    assert isinstance(stage.data, UL2Recipe)
    made = draw(stage.data, tokenizer, range(4000))
    for index, lengths in enumerate(LENGTHS):
        rows = made.denoisers == index
        found = set(zip(made.encoder_lengths[rows].tolist(), made.target_lengths[rows].tolist(), strict=True))
        if index == 2 and stage is STAGE1_RELEASE:
            assert found <= {(570 - n, 3 + n) for n in range(142)}
        else:
            assert found == {lengths}
    assert made.encoder_lengths.max() <= stage.encoder_length == 570
    assert made.target_lengths.max() <= stage.decoder_length == (380 if stage is STAGE1 else 381)


def test_the_releases_s_length_is_uniform_and_the_papers_a_quarter(tokenizer: Tokenizer) -> None:
    s = DenoiserRecipe(mode="S", ratio=0.25)
    uniform = draw(ul2(s, s_length="uniform"), tokenizer, range(71_000)).target_lengths - 2
    counts = np.bincount(uniform, minlength=143)
    assert counts[0] == 0
    assert len(counts) == 143
    # Chi-square of 142 equally likely lengths; 3.1 standard deviations above its mean.
    assert ((counts[1:] - 500) ** 2 / 500).sum() < 141 + 3.1 * (2 * 141) ** 0.5
    assert uniform.mean() / 568 == pytest.approx(0.1259, abs=0.0005)
    assert set(draw(ul2(s), tokenizer, range(500)).target_lengths - 2) == {142}


def test_each_denoiser_gets_a_seventh(tokenizer: Tokenizer) -> None:
    assert isinstance(STAGE1.data, UL2Recipe)
    shares = np.bincount(draw(STAGE1.data, tokenizer, range(70_000)).denoisers) / 70_000
    np.testing.assert_allclose(shares, np.full(7, 1 / 7), atol=4 * (6 / 49 / 70_000) ** 0.5)
    assert [row.mode for row in STAGE1.data.denoisers] == list("RRSXXXX")


@pytest.mark.parametrize(("index", "masked", "mean"), [(0, 85, 3), (1, 85, 8), (3, 284, 3), (5, 85, 64)])
def test_masked_tokens_and_mean_spans_are_table_threes(
    tokenizer: Tokenizer, index: int, masked: int, mean: int
) -> None:
    assert isinstance(STAGE1.data, UL2Recipe)
    spans = masked_spans(draw(STAGE1.data, tokenizer, range(400)), tokenizer, index)
    assert {sum(row) for row in spans} == {masked}  # 15 or 50 % of 568, half to even
    assert {len(row) for row in spans} == {round(masked / mean)}


def reference(length: int, masked: int, spans: int, random: np.random.Generator) -> np.ndarray:
    """T5's random spans as one reads of them: shuffle where segments begin, alternate, mask each second."""

    def segments(total: int) -> np.ndarray:
        begins = np.arange(total - 1) < spans - 1
        random.shuffle(begins)
        return np.bincount(np.cumsum(np.concatenate([[False], begins])))

    noise, kept = segments(masked), segments(length - masked)
    return np.repeat(np.arange(2 * spans) % 2, np.stack([kept, noise], axis=1).ravel()).astype(bool)


def mask_of(made: Denoised, tokenizer: Tokenizer, row: int, length: int) -> np.ndarray:
    labels = np.array(pair(made, row)[1])
    mask = np.zeros(length, bool)
    mask[labels[(labels >= 300) & (labels < 300 + length)] - 300] = True
    return mask


@pytest.mark.parametrize(("mean", "ratio"), [(3, 0.15), (3, 0.5), (64, 0.5)])
def test_masks_are_distributed_as_the_plain_algorithms(tokenizer: Tokenizer, mean: int, ratio: float) -> None:
    row, count = DenoiserRecipe(mode="X", mean_span=mean, ratio=ratio), 3000
    made, random = draw(ul2(row), tokenizer, range(count)), np.random.default_rng(1)
    ours = np.stack([mask_of(made, tokenizer, i, 568) for i in range(count)])
    plain = np.stack([reference(568, row.masked(568), row.spans(568), random) for _ in range(count)])
    bins = np.arange(0, 568, 71)  # eight bins of positions
    for marginal in (np.mean, np.std):
        first, second = (marginal(np.add.reduceat(mask, bins, axis=1) / 71, axis=0) for mask in (ours, plain))
        np.testing.assert_allclose(first, second, atol=4 * second.max() / count**0.5)
    first, second = ([np.diff(np.flatnonzero(~m)).max() for m in mask] for mask in (ours, plain))
    assert np.mean(first) == pytest.approx(np.mean(second), rel=0.05)  # the longest span of each


def test_every_segmentation_is_as_likely(tokenizer: Tokenizer) -> None:
    # Ten of twenty tokens in three spans: 36 ways.
    made = draw(ul2(DenoiserRecipe(mode="X", mean_span=3, ratio=0.5), length=20), tokenizer, range(18_000))
    counts = np.unique(masked_spans(made, tokenizer, 0), axis=0, return_counts=True)[1]
    assert len(counts) == 36
    assert ((counts - 500) ** 2 / 500).sum() < 35 + 3.1 * 70**0.5


def test_stage_two_is_half_and_half(tokenizer: Tokenizer) -> None:
    assert isinstance(STAGE2.data, PrefixRecipe)
    encoder, labels = pair(draw(STAGE2.data, tokenizer, range(1)), 0)
    tokens, first = text(1, 2042)[0].tolist(), tokenizer.sentinel(0)
    assert encoder == [tokenizer.mode("S"), *tokens[:1021], first, tokenizer.eos]
    assert labels == [first, *tokens[1021:], tokenizer.eos]
    assert len(encoder) == STAGE2.encoder_length == 1024


def test_the_releases_stage_two_has_1027_and_1025_tokens(tokenizer: Tokenizer) -> None:
    assert isinstance(STAGE2_RELEASE.data, PrefixRecipe)
    encoder, labels = pair(draw(STAGE2_RELEASE.data, tokenizer, range(1)), 0)
    assert len(encoder) == STAGE2_RELEASE.encoder_length == 1027
    assert len(labels) == STAGE2_RELEASE.decoder_length == 1025
    assert labels[-1] == 300 + 2047  # no </s>


def test_a_sample_is_the_same_in_any_batch(tokenizer: Tokenizer) -> None:
    assert isinstance(STAGE1.data, UL2Recipe)
    whole = draw(STAGE1.data, tokenizer, range(100, 164))
    for start, stop in ((100, 101), (101, 140), (140, 164)):
        part = draw(STAGE1.data, tokenizer, range(start, stop))
        np.testing.assert_array_equal(part.encoder, whole.encoder[start - 100 : stop - 100])
        np.testing.assert_array_equal(part.labels, whole.labels[start - 100 : stop - 100])
    other = draw(STAGE1.data, tokenizer, range(100, 164), seed=8)
    assert (other.denoisers != whole.denoisers).any()


def test_a_window_of_another_length_is_refused(tokenizer: Tokenizer) -> None:
    denoising = Denoising(ul2(DenoiserRecipe(mode="S", ratio=0.25)), tokenizer, IGNORE)
    with pytest.raises(ValueError, match="samples of 568 tokens"):
        denoising.batch(text(3, 567), np.arange(3), 0)


def test_a_span_denoiser_without_a_span_is_refused() -> None:
    with pytest.raises(ValidationError, match="R and X need mean_span"):
        DenoiserRecipe(mode="R", ratio=0.15)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [  # Known answers of Random123 for philox4x32-10.
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_random_numbers_are_philoxs(
    key: tuple[int, ...], counter: tuple[int, ...], words: tuple[int, ...]
) -> None:
    state = np.array([*key, *counter, 0, 0, 0, 0, 0], np.uint64)
    philox(state)
    assert tuple(state[6:10].tolist()) == words


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 50))
def test_an_epoch_has_every_item_once(count: int, seed: int, epoch: int) -> None:
    order = shuffled(np.arange(epoch * count, (epoch + 1) * count), count, seed)
    assert sorted(order.tolist()) == list(range(count))


def test_orders_are_far_from_sorted_and_from_each_other() -> None:
    first, second = (shuffled(np.arange(e * 5000, (e + 1) * 5000), 5000, 3) for e in (0, 1))
    bound = 4 / 5000**0.5
    pairs = [(first, np.arange(5000)), (first, second), (first[1:], first[:-1])]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < bound for a, b in pairs)
    assert (first == second).sum() < 8  # one fixed point is expected
    assert (first == shuffled(np.arange(5000), 5000, 4)).sum() < 8


PROGRAM = """
import sys, numpy as np
from pathlib import Path
from openba.data.denoise import Denoising
from openba.tokenizer.tokenizer import Tokenizer
from openba.recipes.train import DenoiserRecipe, UL2Recipe

rows = (DenoiserRecipe(mode="R", mean_span=3, ratio=0.15), DenoiserRecipe(mode="S", ratio=0.25))
recipe = UL2Recipe(objective="ul2", length=100, denoisers=rows, s_length="uniform")
windows = np.tile(np.arange(300, 400), (3, 1))
denoising = Denoising(recipe, Tokenizer.load(Path(sys.argv[1])), -100)
made = denoising.batch(windows, np.array([0, 1, 2**40]), 7)
print(made.encoder.tolist(), made.labels.tolist())
"""


def test_another_process_corrupts_the_same_way(tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, tokenizer_folder], capture_output=True, text=True, check=True
    ).stdout
    rows = (DenoiserRecipe(mode="R", mean_span=3, ratio=0.15), DenoiserRecipe(mode="S", ratio=0.25))
    recipe = ul2(*rows, length=100, s_length="uniform")
    made = Denoising(recipe, tokenizer, IGNORE).batch(text(3, 100), np.array([0, 1, 2**40]), 7)
    assert output.strip() == f"{made.encoder.tolist()} {made.labels.tolist()}"


@pytest.mark.parametrize(("mean", "ratio"), [(3, 0.15), (64, 0.15), (3, 0.5)])
def test_spans_anywhere_leave_kept_text_at_the_end(tokenizer: Tokenizer, mean: int, ratio: float) -> None:
    """The release always masks the last token, `anywhere` seldom."""
    row = DenoiserRecipe(mode="X", mean_span=mean, ratio=ratio)
    length = 568
    masks = {}
    for spans in ("to_end", "anywhere"):
        made = draw(ul2(row, length=length, spans=spans), tokenizer, range(2000))
        masks[spans] = np.array([mask_of(made, tokenizer, place, length) for place in range(2000)])
        assert (masks[spans].sum(axis=1) == row.masked(length)).all()
    assert masks["to_end"][:, -1].all()
    assert masks["anywhere"][:, -1].mean() < 0.5


def test_anywhere_rebuilds_its_text(tokenizer: Tokenizer) -> None:
    recipe = ul2(DenoiserRecipe(mode="R", mean_span=3, ratio=0.15), length=64, spans="anywhere")
    made = draw(recipe, tokenizer, range(200))
    source = text(200, 64)
    for place in range(200):
        encoder, labels = pair(made, place)
        masked = spans_of(labels[:-1], tokenizer)
        numbers = [tokenizer.base + 99 - i if i < tokenizer.base + 100 else -1 for i in encoder[1:-1]]
        rebuilt = [
            t
            for i, number in zip(encoder[1:-1], numbers, strict=True)
            for t in (masked[number] if 0 <= number < 100 else [i])
        ]
        assert rebuilt == source[place].tolist()


def test_clipped_sentinels_are_said() -> None:
    row = DenoiserRecipe(mode="X", mean_span=3, ratio=0.5)
    assert ul2(row, length=568).clipped == []
    (line,) = ul2(row, length=1024).clipped
    assert line == (
        "X(3, 0.5) needs 171 spans of 1,024 tokens and has 100 sentinels: its mean span is 5.1 tokens"
    )
