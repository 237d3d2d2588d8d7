"""Speed of the model against transformers' T5: training steps and greedy decoding, CPU, fp32.

The shape keeps the 15B model's proportions at a width that two cores can train: a decoder three times as deep
as the encoder, and as many words as give the head the share of the forward FLOPs that it has there (6 %).
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
from openba.config import load
from openba.graph import find_config
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
PROMPT = 128
TINY_IDS = 8103
"""Ids of the `tiny` pipeline's tokenizer."""
TRAIN_ROUNDS, DECODE_ROUNDS = 7, 7
Case = Callable[[], object]


def train_figures() -> Iterator[Figure]:
    """A forward and backward pass over one sample of each of Table 3's denoisers, padded to 570/380."""
    encoder_ids, mask, decoder_ids, labels = stage1_batch()
    targets = int((labels != IGNORE).sum())
    torch.manual_seed(0)
    model = OpenBAModel(SHAPE)

    def ours(padded: bool) -> Case:
        def step() -> None:
            model.zero_grad()
            (model(encoder_ids, mask, decoder_ids, labels, padded) / targets).backward()

        return step

    def peer(t5: torch.nn.Module) -> Case:
        arguments = {"input_ids": encoder_ids, "attention_mask": mask.long()}

        def step() -> None:
            t5.zero_grad()
            t5(**arguments, decoder_input_ids=decoder_ids, labels=labels, use_cache=False).loss.backward()

        return step

    cases = {"padded": ours(True), "ragged": ours(False)}
    cases |= {name: peer(t5) for name, t5 in variants(SHAPE, dynamic=False).items()}
    seconds = medians(cases, TRAIN_ROUNDS)
    best = min((name for name in cases if name.startswith("T5")), key=lambda name: seconds[name])
    useful = int(mask.sum()) + targets
    padded = seconds[best] / seconds["padded"]
    told = _told(seconds, best)
    yield Figure(
        "model/train_step_padded", mask.numel() / seconds["padded"], "tok/s", peer=told, ratio=padded
    )
    yield Figure("model/train_step_padded_against_peer", padded, "x", 1.2, "higher", told, padded)
    ragged = seconds[best] / seconds["ragged"]
    yield Figure("model/train_step_useful", useful / seconds["ragged"], "tok/s", peer=told, ratio=ragged)
    yield Figure("model/train_step_useful_against_peer", ragged, "x", 1.8, "higher", told, ragged)


def decode_figures() -> Iterator[Figure]:
    """Greedy decoding of exactly 128 new tokens for prompts of 128 tokens, cache on.

    Of the shape that the `tiny` pipeline trains, where calls are the time, and of `SHAPE`, where weights are.
    """
    tiny = load(find_config("model", "tiny"), ModelRecipe).architecture(TINY_IDS)
    yield from _decode("tiny", tiny)
    yield from _decode("wide", SHAPE)


def _decode(label: str, shape: Architecture) -> Iterator[Figure]:
    torch.manual_seed(0)
    model = OpenBAModel(shape).eval()
    peers = {name: t5.eval() for name, t5 in variants(shape, dynamic=True).items()}
    for batch in (1, 16):
        ids = torch.randint(3, shape.vocab_size, (batch, PROMPT))
        cases: dict[str, Case] = {"ours": _ours_decoding(model, ids)}
        cases |= {name: _peer_decoding(t5, ids) for name, t5 in peers.items()}
        seconds = medians(cases, DECODE_ROUNDS)
        best = min(peers, key=lambda name: seconds[name])
        ratio, told = seconds[best] / seconds["ours"], _told(seconds, best)
        name = f"model/decode_{label}_batch_{batch}"
        yield Figure(name, batch * NEW_TOKENS / seconds["ours"], "tok/s", peer=told, ratio=ratio)
        yield Figure(f"{name}_against_peer", ratio, "x", 2.0, "higher", told, ratio)


def _ours_decoding(model: OpenBAModel, ids: Tensor) -> Case:
    sources, vocab = ids.tolist(), model.architecture.vocab_size
    return lambda: sum(len(w.tokens) for w in greedy(model, sources, [0], -1, vocab, NEW_TOKENS))


def _peer_decoding(t5: T5ForConditionalGeneration, ids: Tensor) -> Case:
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "decoder_start_token_id": 0}
    mask = torch.ones_like(ids)
    generate = cast(Any, t5).generate
    return lambda: generate(
        input_ids=ids, attention_mask=mask, do_sample=False, past_key_values=cache(), **length
    )


def stage1_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random ids with the lengths that Table 3's denoisers give 568 tokens."""
    recipe = load(find_config("pretrain", "stage1"), TrainRecipe)
    assert isinstance(recipe.data, UL2Recipe)
    sizes = [size for c in recipe.data.corruptions() for size in c.sizes(recipe.data.length)]
    random = torch.Generator().manual_seed(0)

    def side(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(3, SHAPE.vocab_size, (len(lengths), width), generator=random)
        mask = first(torch.tensor(lengths), width)
        return ids * mask, mask

    encoder_ids, mask = side([encoder for encoder, _ in sizes], recipe.encoder_length)
    targets, real = side([target for _, target in sizes], recipe.decoder_length)
    decoder_ids = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], 1)
    return encoder_ids, mask, decoder_ids, targets.masked_fill(~real, IGNORE)


def _told(seconds: dict[str, float], best: str) -> str:
    """The best peer, and what every case took."""
    return f"{best}; seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
