"""Speed of the model against transformers' T5: training steps and greedy decoding, CPU, fp32.

The architecture keeps the 15B model's proportions at a width that two cores can train: a decoder three times
as deep as the encoder, and a vocabulary that gives the head its share of the forward FLOPs there (6 %).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from benchmarks.figure import Figure
from benchmarks.model.t5 import cache, variants
from benchmarks.timing import medians
from openba.config import find_config, load
from openba.model.decoding import greedy
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.model.rows import first
from openba.recipes.architecture import Architecture
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe, UL2Recipe

SHAPE = Architecture(
    vocab_size=3712,
    hidden_size=256,
    kv_channels=64,
    num_heads=4,
    ffn_hidden_size=1152,
    num_layers=2,
    num_decoder_layers=6,
    norm="rmsnorm",
    sandwich_norm=True,
)
NEW_TOKENS = 128
PROMPT_TOKENS = 128
TINY_VOCABULARY_SIZE = 8103
"""Number of ids of the `tiny` pipeline's tokenizer."""
TRAIN_ROUNDS = 7
DECODE_ROUNDS = 7
TimedCase = Callable[[], object]


def train_figures() -> Iterator[Figure]:
    """Time forward and backward passes over one sample of each of Table 3's denoisers, padded to 570/380."""
    encoder_ids, mask, decoder_ids, labels = stage1_batch()
    target_count = int((labels != IGNORE).sum())
    torch.manual_seed(0)
    model = OpenBAModel(SHAPE)

    def our_case(padded: bool) -> TimedCase:
        def run_step() -> None:
            model.zero_grad()
            (model.loss(encoder_ids, mask, decoder_ids, labels, padded) / target_count).backward()

        return run_step

    def peer_case(t5: torch.nn.Module) -> TimedCase:
        source = {"input_ids": encoder_ids, "attention_mask": mask.long()}

        def run_step() -> None:
            t5.zero_grad()
            t5(**source, decoder_input_ids=decoder_ids, labels=labels, use_cache=False).loss.backward()

        return run_step

    cases = {"padded": our_case(True), "ragged": our_case(False)}
    cases |= {name: peer_case(t5) for name, t5 in variants(SHAPE, dynamic=False).items()}
    seconds = medians(cases, TRAIN_ROUNDS)
    best_peer = min((name for name in cases if name.startswith("T5")), key=lambda name: seconds[name])
    comparison = _comparison(seconds, best_peer)
    padded_ratio = seconds[best_peer] / seconds["padded"]
    padded_rate = mask.numel() / seconds["padded"]
    yield Figure("model/train_step_padded", padded_rate, "tok/s", peer=comparison, ratio=padded_ratio)
    figure_name = "model/train_step_padded_against_peer"
    yield Figure(figure_name, padded_ratio, "x", 1.2, "higher", comparison, padded_ratio)
    # The ragged layout computes real tokens only; its rate counts those of source and target.
    useful_tokens = int(mask.sum()) + target_count
    useful_ratio = seconds[best_peer] / seconds["ragged"]
    useful_rate = useful_tokens / seconds["ragged"]
    yield Figure("model/train_step_useful", useful_rate, "tok/s", peer=comparison, ratio=useful_ratio)
    figure_name = "model/train_step_useful_against_peer"
    yield Figure(figure_name, useful_ratio, "x", 1.8, "higher", comparison, useful_ratio)


def decode_figures() -> Iterator[Figure]:
    """Time greedy decoding of exactly 128 new tokens for prompts of 128 tokens, with the cache.

    Of the `tiny` pipeline's architecture, where the overhead of calls dominates, and of `SHAPE`, where
    reading the weights does.
    """
    tiny = load(find_config("model", "tiny"), ModelRecipe).architecture(TINY_VOCABULARY_SIZE)
    yield from _decode_figures("tiny", tiny)
    yield from _decode_figures("wide", SHAPE)


def _decode_figures(label: str, architecture: Architecture) -> Iterator[Figure]:
    torch.manual_seed(0)
    model = OpenBAModel(architecture).eval()
    peers = {name: t5.eval() for name, t5 in variants(architecture, dynamic=True).items()}
    for batch_size in (1, 16):
        prompt_ids = torch.randint(3, architecture.vocab_size, (batch_size, PROMPT_TOKENS))
        cases: dict[str, TimedCase] = {"ours": _our_decoding(model, prompt_ids)}
        cases |= {name: _peer_decoding(t5, prompt_ids) for name, t5 in peers.items()}
        seconds = medians(cases, DECODE_ROUNDS)
        best_peer = min(peers, key=lambda name: seconds[name])
        ratio = seconds[best_peer] / seconds["ours"]
        comparison = _comparison(seconds, best_peer)
        figure_name = f"model/decode_{label}_batch_{batch_size}"
        token_rate = batch_size * NEW_TOKENS / seconds["ours"]
        yield Figure(figure_name, token_rate, "tok/s", peer=comparison, ratio=ratio)
        yield Figure(f"{figure_name}_against_peer", ratio, "x", 2.0, "higher", comparison, ratio)


def _our_decoding(model: OpenBAModel, prompt_ids: Tensor) -> TimedCase:
    sources = prompt_ids.tolist()
    vocabulary_size = model.architecture.vocab_size
    # -1 is no token, so that no row ends before its 128 tokens.
    return lambda: sum(
        len(step.tokens) for step in greedy(model, sources, [0], -1, vocabulary_size, NEW_TOKENS)
    )


def _peer_decoding(t5: T5ForConditionalGeneration, prompt_ids: Tensor) -> TimedCase:
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "decoder_start_token_id": 0}
    mask = torch.ones_like(prompt_ids)
    generate = cast(Any, t5).generate  # its annotations do not fit a plain call
    return lambda: generate(
        input_ids=prompt_ids, attention_mask=mask, do_sample=False, past_key_values=cache(), **settings
    )


def stage1_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random encoder ids, mask, decoder ids and labels with the lengths of Table 3's denoisers."""
    recipe = load(find_config("pretrain", "stage1"), TrainRecipe)
    assert isinstance(recipe.data, UL2Recipe)
    sample_lengths = [
        lengths
        for corruption in recipe.data.corruptions()
        for lengths in corruption.sizes(recipe.data.length)
    ]
    generator = torch.Generator().manual_seed(0)

    def random_rows(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(3, SHAPE.vocab_size, (len(lengths), width), generator=generator)
        is_real = first(torch.tensor(lengths), width)
        return ids * is_real, is_real

    encoder_lengths = [encoder_length for encoder_length, _ in sample_lengths]
    target_lengths = [target_length for _, target_length in sample_lengths]
    encoder_ids, mask = random_rows(encoder_lengths, recipe.encoder_length)
    targets, is_target = random_rows(target_lengths, recipe.decoder_length)
    decoder_ids = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], 1)
    return encoder_ids, mask, decoder_ids, targets.masked_fill(~is_target, IGNORE)


def _comparison(seconds: dict[str, float], best_peer: str) -> str:
    """Return the best peer's name and the seconds of every case."""
    return f"{best_peer}; seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
