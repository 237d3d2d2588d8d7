"""The training objectives as functions from tokens to (encoder ids, target ids).

UL2's R, S and X denoisers (paper section 3.3, Table 3), Stage II's prefix form, and nothing
else: no files, no batches. Randomness comes from a generator that the caller keys by
(seed, sample), so a sample's corruption depends on nothing but those.

Layout as in the release: encoder `[mode] text with sentinels </s>`, target `<extra_id_0> span
<extra_id_1> span ... </s>`.
"""

from __future__ import annotations

import numpy as np

from openba.data.tokenizer import Tokenizer
from openba.recipes.train import DenoiserRecipe, PrefixRecipe, UL2Recipe

Pair = tuple[np.ndarray, np.ndarray]


def generator(seed: int, sample: int) -> np.random.Generator:
    """A counter-based generator: the same (seed, sample) gives the same stream on any machine."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, sample], dtype=np.uint64)))


def choose(recipe: UL2Recipe, random: np.random.Generator) -> DenoiserRecipe:
    """One denoiser, uniformly (release: 2/7 R, 1/7 S, 4/7 X)."""
    return recipe.denoisers[int(random.integers(len(recipe.denoisers)))]


def corrupt(
    tokens: np.ndarray,
    denoiser: DenoiserRecipe,
    recipe: UL2Recipe,
    random: np.random.Generator,
    tokenizer: Tokenizer,
) -> Pair:
    """Apply one denoiser to `[length]` tokens; both results are int32, special tokens included."""
    if denoiser.mode == "S":
        masked = max(1, round(len(tokens) * denoiser.ratio))
        if recipe.s_length == "uniform":
            masked = int(random.integers(1, masked + 1))
        return split(tokens, masked, tokenizer)
    return spans(tokens, denoiser, random, tokenizer)


def prefix(tokens: np.ndarray, recipe: PrefixRecipe, tokenizer: Tokenizer) -> Pair:
    """Stage II: the encoder sees the first part, the decoder writes the rest (paper: 50 %)."""
    return split(tokens, max(1, round(len(tokens) * recipe.ratio)), tokenizer)


def split(tokens: np.ndarray, masked: int, tokenizer: Tokenizer) -> Pair:
    """S-denoising: mask the last `masked` tokens."""
    first = tokenizer.sentinel(0)
    encoder = _join([tokenizer.mode("S")], tokens[:-masked], [first, tokenizer.eos])
    return encoder, _join([first], tokens[-masked:], [tokenizer.eos])


def spans(
    tokens: np.ndarray, denoiser: DenoiserRecipe, random: np.random.Generator, tokenizer: Tokenizer
) -> Pair:
    """R- and X-denoising: T5's random segmentation with fixed totals.

    The number of masked tokens and of spans is fixed by ratio and mean; which tokens is random.
    Kept and masked segments alternate, kept first, so a sample always ends masked (as the release).
    """
    assert denoiser.mean_span is not None, "the recipe refuses it"
    length = len(tokens)
    masked = min(max(round(length * denoiser.ratio), 1), length - 1)
    count = min(max(round(masked / denoiser.mean_span), 1), masked, length - masked, 100)
    noise = _segments(masked, count, random)
    kept = _segments(length - masked, count, random)
    borders = np.cumsum(np.stack([kept, noise], axis=1).ravel())[:-1]
    pieces = np.split(tokens, borders)
    encoder: list[np.ndarray | list[int]] = [[tokenizer.mode(denoiser.mode)]]
    target: list[np.ndarray | list[int]] = []
    for k in range(count):
        sentinel = [tokenizer.sentinel(k)]
        encoder += [pieces[2 * k], sentinel]
        target += [sentinel, pieces[2 * k + 1]]
    return _join(*encoder, [tokenizer.eos]), _join(*target, [tokenizer.eos])


def _segments(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """A uniformly random split of `total` into `count` positive parts."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False) + 1) if count > 1 else np.empty(0, int)
    return np.diff(np.concatenate([[0], cuts, [total]]).astype(np.int64))


def _join(*parts: np.ndarray | list[int]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
