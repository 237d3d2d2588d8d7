"""UL2 samples per second: our kernel against a plain Python collator like the released one, interleaved.

One core, process CPU time; windows of 568 random ids; encoder, decoder and labels, padded. The collator draws
one sample at a time with NumPy's generator, as a data loader's `__getitem__` would.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.figure import ROOT, Figure
from openba.config import CONFIGS, load
from openba.data.denoise import Denoising
from openba.recipes.train import TrainRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer

_ROUNDS = 7
# The collator is some 30 times slower: fewer samples give it rounds of about the same time.
_KERNEL_SAMPLES = 16_384
_COLLATOR_SAMPLES = 256
_STAGE2_SAMPLES = 2048
_SEED = 1234
_IGNORED_LABEL = -100
_TOKENIZER_FILE = ROOT.parent / "shared" / "data" / "tokenizer_mt5" / "spiece.model"


def figures() -> Iterator[Figure]:
    """Yield samples per second of Stage I's settings, their ratio to the collator, and Stage II's."""
    tokenizer = Tokenizer(_TOKENIZER_FILE)
    stage1 = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe)
    stage2 = load(CONFIGS / "pretrain" / "stage2.yaml", TrainRecipe)
    assert isinstance(stage1.data, UL2Recipe)
    kernel = Denoising(stage1.data, tokenizer, _IGNORED_LABEL)
    collator = _Collator(stage1.data, tokenizer)
    windows = _random_windows(_KERNEL_SAMPLES, kernel.length)
    collator_windows = windows[:_COLLATOR_SAMPLES]
    kernel_rates: list[float] = []
    collator_rates: list[float] = []
    for round_number in range(_ROUNDS):
        first_sample = round_number * _KERNEL_SAMPLES
        sample_numbers = np.arange(first_sample, first_sample + _KERNEL_SAMPLES)
        run_kernel = partial(kernel.batch, windows, sample_numbers, _SEED)
        run_collator = partial(collator.batch, collator_windows, sample_numbers[:_COLLATOR_SAMPLES])
        kernel_rates.append(_samples_per_second(_KERNEL_SAMPLES, run_kernel))
        collator_rates.append(_samples_per_second(_COLLATOR_SAMPLES, run_collator))
    kernel_rate = statistics.median(kernel_rates)
    collator_rate = statistics.median(collator_rates)
    # The median of the rounds' ratios, not the ratio of medians: both sides of a round had the same load.
    speedup = statistics.median(
        kernel_speed / collator_speed
        for kernel_speed, collator_speed in zip(kernel_rates, collator_rates, strict=True)
    )
    peer = f"Python collator of the released kind: {collator_rate:,.0f}/s"
    yield Figure("data/ul2_samples", kernel_rate, "1/s", 100_000, "higher", peer, speedup)
    yield Figure("data/ul2_against_collator", speedup, "x", 25, "higher", peer, speedup)
    stage2_kernel = Denoising(stage2.data, tokenizer, _IGNORED_LABEL)  # type: ignore[arg-type]
    stage2_windows = _random_windows(_STAGE2_SAMPLES, stage2_kernel.length)
    run_stage2 = partial(stage2_kernel.batch, stage2_windows, np.arange(_STAGE2_SAMPLES), 1)
    stage2_rates = [_samples_per_second(_STAGE2_SAMPLES, run_stage2) for _ in range(_ROUNDS)]
    yield Figure("data/stage2_samples", statistics.median(stage2_rates), "1/s")


def _random_windows(row_count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 250_000, (row_count, length), dtype=np.int32)


def _samples_per_second(sample_count: int, work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return sample_count / (time.process_time() - started)


class _Collator:
    """Collator that makes samples one by one: task, two random segmentations, lists of ids, padding."""

    def __init__(self, recipe: UL2Recipe, tokenizer: Tokenizer) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.encoder_width, self.decoder_width = recipe.longest

    def batch(self, windows: np.ndarray, sample_numbers: np.ndarray) -> dict[str, np.ndarray]:
        rows = [
            self._make_sample(window, int(number))
            for window, number in zip(windows, sample_numbers, strict=True)
        ]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _make_sample(self, tokens: np.ndarray, sample_number: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(_SEED + sample_number)
        denoiser = self.recipe.denoisers[int(generator.integers(len(self.recipe.denoisers)))]
        masked_count = denoiser.masked(len(tokens))
        if denoiser.mode == "S":
            mask = np.arange(len(tokens)) >= len(tokens) - masked_count
        else:
            span_count = denoiser.spans(len(tokens))
            mask = self._span_mask(len(tokens), masked_count, span_count, generator)
        encoder_ids = [self.tokenizer.mode(denoiser.mode)]
        labels: list[int] = []
        sentinel_count = 0
        was_masked = False
        for token, is_masked in zip(tokens.tolist(), mask.tolist(), strict=True):
            if is_masked and not was_masked:
                encoder_ids.append(self.tokenizer.sentinel(sentinel_count))
                labels.append(self.tokenizer.sentinel(sentinel_count))
                sentinel_count += 1
            (labels if is_masked else encoder_ids).append(token)
            was_masked = is_masked
        encoder_ids.append(self.tokenizer.eos)
        labels.append(self.tokenizer.eos)
        decoder_ids = [self.tokenizer.pad, *labels[:-1]]
        return {
            "encoder": _pad_row(encoder_ids, self.encoder_width, 0),
            "decoder": _pad_row(decoder_ids, self.decoder_width, 0),
            "labels": _pad_row(labels, self.decoder_width, _IGNORED_LABEL),
        }

    def _span_mask(
        self, length: int, masked_count: int, span_count: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Return a mask of `span_count` random spans, as T5's `random_spans_noise_mask` draws them."""

        def random_segments(total: int) -> np.ndarray:
            is_start = np.arange(total - 1) < span_count - 1
            generator.shuffle(is_start)
            return np.bincount(np.cumsum(np.concatenate([[False], is_start])))

        masked_lengths = random_segments(masked_count)
        unmasked_lengths = random_segments(length - masked_count)
        interleaved_lengths = np.stack([unmasked_lengths, masked_lengths], axis=1).ravel()
        return np.repeat(np.arange(2 * span_count) % 2, interleaved_lengths).astype(bool)


def _pad_row(token_ids: list[int], width: int, padding: int) -> np.ndarray:
    return np.array(token_ids + [padding] * (width - len(token_ids)), np.int64)
