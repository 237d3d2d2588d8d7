"""Decoding: the cache and the batch change nothing, </s> ends an answer, choices are told by their loss."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from openba.data.instruct import encode_input
from openba.data.tokenizer import Tokenizer
from openba.model.generate import BATCH, choice_losses, generate
from openba.model.model import IGNORE, OpenBAModel
from openba.recipes.model import ModelRecipe

PROMPTS = [
    "房间很干净，服务也好。",
    "Translate into Chinese: the file was not found",
    "def",
    "书的质量太差了！" * 4,
]
# Wide initial weights: the answers of a random model then hang on all it has read.
RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=3,
    init_std=0.3, head_bias=True, tie_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> OpenBAModel:
    torch.manual_seed(3)
    return OpenBAModel(RECIPE, RECIPE.padded_vocab(tokenizer.size), max_length=64).eval()


@pytest.fixture
def sources(tokenizer: Tokenizer) -> list[list[int]]:
    return [encode_input(tokenizer, prompt, [], 64) for prompt in PROMPTS]


def plain_greedy(model: OpenBAModel, tokenizer: Tokenizer, source: list[int], limit: int) -> list[int]:
    """Every step from scratch: one row, no cache, no padding."""
    ids, written = torch.tensor([source]), [tokenizer.pad, tokenizer.sentinel(0)]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(limit):
            hidden, _ = model.decode(torch.tensor([written]), model.memory(model.encode(ids, mask)), mask)
            following = int(model.logits(hidden)[0, -1, : tokenizer.size].argmax())
            if following == tokenizer.eos:
                break
            written.append(following)
    return written[2:]


def test_cache_and_batch_change_nothing(
    model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]]
) -> None:
    expected = [tokenizer.decode(plain_greedy(model, tokenizer, source, 12)) for source in sources]
    assert len(set(expected)) == len(expected)
    assert all(len(answer) > 5 for answer in expected)
    assert len({len(source) for source in sources}) == len(sources)  # ragged
    assert generate(model, tokenizer, sources, 12) == expected
    assert [generate(model, tokenizer, [source], 12)[0] for source in sources] == expected


def test_more_prompts_than_a_batch_keep_their_order(
    model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]]
) -> None:
    answers = generate(model, tokenizer, sources, 8)
    many = [sources[i % 4] for i in range(2 * BATCH + 3)]
    assert generate(model, tokenizer, many, 8) == [answers[i % 4] for i in range(len(many))]
    assert generate(model, tokenizer, [], 8) == []


def test_an_answer_ends_at_its_own_end_token(
    model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]]
) -> None:
    before = [plain_greedy(model, tokenizer, source, 12) for source in sources]
    # </s> takes the place of the token that the first answer has fourth, and wins wherever that did.
    ending, eos, ended = before[0][3], tokenizer.eos, copy.deepcopy(model)
    with torch.no_grad():
        ended.head.weight[eos], ended.head_bias[eos] = (
            ended.head.weight[ending],
            ended.head_bias[ending] + 1e-3,
        )
    cut = [ids[: ids.index(ending)] if ending in ids else ids for ids in before]
    assert len(cut[0]) <= 3
    assert max(map(len, cut)) == 12  # while others go on
    assert generate(ended, tokenizer, sources, 12) == [tokenizer.decode(ids) for ids in cut]
    with torch.no_grad():
        ended.head_bias[eos] = 1e4
    assert generate(ended, tokenizer, sources, 12) == [""] * 4


def test_padding_rows_of_the_vocabulary_are_never_written(model: OpenBAModel, tokenizer: Tokenizer) -> None:
    source, biased = encode_input(tokenizer, "x", [], 64), copy.deepcopy(model)
    with torch.no_grad():
        biased.head_bias[tokenizer.size :] = 1e4
    assert generate(biased, tokenizer, [source], 10) == generate(model, tokenizer, [source], 10)


def loss_by_forward(model: OpenBAModel, tokenizer: Tokenizer, source: list[int], choice: str) -> float:
    """Mean loss of the choice and </s>; the leading sentinel is given, not asked."""
    target = [tokenizer.sentinel(0), *tokenizer.encode(choice), tokenizer.eos]
    labels: Tensor = torch.tensor([[IGNORE, *target[1:]]])
    ids = torch.tensor([source])
    with torch.no_grad():
        loss = model(
            ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([[tokenizer.pad, *target[:-1]]]), labels
        )
    return float(loss) / (len(target) - 1)


def test_choices_are_scored_by_their_mean_loss(
    model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]]
) -> None:
    choices = ["正面", "负面", "a much longer choice than the others", "中"]
    for source in sources:
        expected = [loss_by_forward(model, tokenizer, source, choice) for choice in choices]
        assert choice_losses(model, tokenizer, source, choices) == pytest.approx(expected, rel=1e-5)
        assert len({round(loss, 3) for loss in expected}) == 4


def test_the_number_of_choices_does_not_move_a_score(
    model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]]
) -> None:
    together = choice_losses(model, tokenizer, sources[0], ["正面", "a longer one"])
    alone = [choice_losses(model, tokenizer, sources[0], [choice])[0] for choice in ("正面", "a longer one")]
    assert together == pytest.approx(alone, rel=1e-5)
    assert all(map(math.isfinite, together))
