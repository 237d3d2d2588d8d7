"""UL2 samples a second: our kernel against a plain Python collator of the released kind, in turn.

One core, process CPU time; windows of 568 random ids, encoder, decoder and labels, padded. The
collator draws one sample at a time with NumPy's generator, as a data loader's `__getitem__` would.
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

_ROUNDS, _OURS, _PEERS = 7, 16_384, 256
_TOKENIZER = ROOT.parent / "shared" / "data" / "tokenizer_mt5" / "spiece.model"


def figures() -> Iterator[Figure]:
    """Samples a second of the paper's settings and the ratio to the collator; Stage II's; one batch."""
    tokenizer = Tokenizer(_TOKENIZER)
    stage1, stage2 = (
        load(CONFIGS / "pretrain" / f"{name}.yaml", TrainRecipe) for name in ("stage1", "stage2")
    )
    assert isinstance(stage1.data, UL2Recipe)
    ours, peer = Denoising(stage1.data, tokenizer, -100), _Collator(stage1.data, tokenizer)
    windows = _windows(_OURS, ours.length)
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(_ROUNDS):
        numbers = np.arange(turn * _OURS, (turn + 1) * _OURS)
        rates["ours"].append(_rate(_OURS, partial(ours.batch, windows, numbers, 1234)))
        rates["peer"].append(_rate(_PEERS, partial(peer.batch, windows[:_PEERS], numbers[:_PEERS])))
    own, other = (statistics.median(rates[name]) for name in ("ours", "peer"))
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["peer"], strict=True))
    collator = f"Python collator of the released kind: {other:,.0f}/s"
    yield Figure("data/ul2_samples", own, "1/s", 100_000, "higher", collator, ratio)
    yield Figure("data/ul2_against_collator", ratio, "x", 25, "higher", collator, ratio)
    prefix = Denoising(stage2.data, tokenizer, -100)  # type: ignore[arg-type]
    text = _windows(2048, prefix.length)
    second = [_rate(2048, lambda: prefix.batch(text, np.arange(2048), 1)) for _ in range(_ROUNDS)]
    yield Figure("data/stage2_samples", statistics.median(second), "1/s")


def _windows(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 250_000, (rows, length), dtype=np.int32)


def _rate(count: int, work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return count / (time.process_time() - started)


class _Collator:
    """Samples one by one: task, two random segmentations, lists of ids, padding."""

    def __init__(self, recipe: UL2Recipe, tokenizer: Tokenizer) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.widths = recipe.longest

    def batch(self, windows: np.ndarray, samples: np.ndarray) -> dict[str, np.ndarray]:
        rows = [self._sample(window, int(number)) for window, number in zip(windows, samples, strict=True)]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _sample(self, tokens: np.ndarray, number: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(1234 + number)
        denoiser = self.recipe.denoisers[int(random.integers(len(self.recipe.denoisers)))]
        masked = denoiser.masked(len(tokens))
        if denoiser.mode == "S":
            mask = np.arange(len(tokens)) >= len(tokens) - masked
        else:
            mask = self._mask(len(tokens), masked, denoiser.spans(len(tokens)), random)
        encoder, labels, sentinel, before = [self.tokenizer.mode(denoiser.mode)], [], -1, False
        for token, hidden in zip(tokens.tolist(), mask.tolist(), strict=True):
            if hidden and not before:
                sentinel += 1
                encoder.append(self.tokenizer.sentinel(sentinel))
                labels.append(self.tokenizer.sentinel(sentinel))
            (labels if hidden else encoder).append(token)
            before = hidden
        encoder.append(self.tokenizer.eos)
        labels.append(self.tokenizer.eos)
        decoder = [self.tokenizer.pad, *labels[:-1]]
        source, target = self.widths
        return {
            "encoder": np.array(encoder + [0] * (source - len(encoder)), np.int64),
            "decoder": np.array(decoder + [0] * (target - len(decoder)), np.int64),
            "labels": np.array(labels + [-100] * (target - len(labels)), np.int64),
        }

    def _mask(self, length: int, masked: int, spans: int, random: np.random.Generator) -> np.ndarray:
        def segments(total: int) -> np.ndarray:
            begins = np.arange(total - 1) < spans - 1
            random.shuffle(begins)
            return np.bincount(np.cumsum(np.concatenate([[False], begins])))

        noise, kept = segments(masked), segments(length - masked)
        return np.repeat(np.arange(2 * spans) % 2, np.stack([kept, noise], axis=1).ravel()).astype(bool)
