"""Training that does not use its source is noticed, and training that does is not accused."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openba.artifacts import Build
from openba.data import instruct, labelled
from openba.data.instruct import Pairs
from openba.model.model import OpenBAModel
from openba.recipes.data import InstructRecipe, TaskRecipe, TaskStep
from openba.recipes.model import ModelRecipe
from openba.recipes.train import OptimRecipe, TrainRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import Batch
from openba.train.heldout import HeldOut
from openba.train.objectives import training_samples
from openba.train.source_use import alarms, label_entropies, lenders

COLOURS = ("red", "green", "blue", "black")


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=40))
def test_each_sample_lends_once_within_its_task(drawn: list[tuple[int, int]]) -> None:
    lengths, kinds = np.array(drawn).T
    found = lenders(lengths, kinds)
    assert sorted(found) == list(range(len(drawn)))
    assert (kinds[found] == kinds).all()
    sizes = Counter(kinds.tolist())
    assert all((lender == row) == (sizes[int(kinds[row])] == 1) for row, lender in enumerate(found))


def test_a_loss_that_another_source_does_not_change_is_an_alarm() -> None:
    blind = {"loss": 0.230, "shuffled": 0.231, "shuffled_error": 0.002}
    assert len(alarms(blind, {})) == 1
    assert alarms({"loss": 0.1, "shuffled": 0.9, "shuffled_error": 0.05}, {}) == []
    by_denoiser = {"R": 5.0, "R_shuffled": 5.01, "R_shuffled_error": 0.1}
    seeing = {"loss": 5.0, "shuffled": 5.6, "shuffled_error": 0.05}
    assert alarms(seeing | by_denoiser, {}) == [
        "the source is ignored on R: loss 5.000, with another sample's source 5.010"
    ]


def test_a_loss_at_the_entropy_of_the_labels_is_an_alarm() -> None:
    figures = {"loss_topic": 0.32, "loss_sentiment": 0.1}
    entropies = {"topic": 0.32, "sentiment": 0.17}
    assert alarms(figures, entropies) == ["topic is at the entropy of its labels: loss 0.320, entropy 0.320"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, tokenizer_folder: Path) -> Path:
    """A task with four labels that follow from the input, and one whose answers never recur."""
    root = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(1)
    labels = [COLOURS[n] for n in generator.integers(0, 4, 600)]
    rows = {
        "colour": [
            f'{{"id": "{n}", "q": "{label} thing {n}", "a": "{label}"}}' for n, label in enumerate(labels)
        ],
        "number": [f'{{"id": "{n}", "q": "say {n * 7}", "a": "{n * 7}"}}' for n in range(200)],
    }
    inputs = {"tokenizer": tokenizer_folder}
    for name, lines in rows.items():
        file = root / f"{name}.jsonl"
        file.write_text("\n".join(lines))
        recipe = TaskRecipe.model_validate(
            {
                "source": {
                    "adapter": "jsonl",
                    "path": str(file),
                    "text_field": "q",
                    "language": "en",
                    "licence": "own",
                },
                "templates": [{"input": "{q}", "target": "{a}"}],
            }
        )
        (out := root / f"task-{name}").mkdir()
        labelled.build(Build(out, TaskStep(name=name, task=recipe), {}))
        inputs[f"task-{name}"] = out
    (out := root / "data").mkdir()
    mix = InstructRecipe(
        tasks=dict.fromkeys(rows, "en"), encoder_length=64, decoder_length=32, over_long="drop"
    )
    instruct.build(Build(out, mix, inputs))
    return out


def test_labels_have_an_entropy_and_free_answers_none(pairs: Path) -> None:
    found = label_entropies(Pairs(pairs, "train"))
    assert found.keys() == {"colour"}
    data = Pairs(pairs, "train")
    lengths = [len(data.target(n)) for n in range(len(data)) if data.names[data.task(n)] == "colour"]
    assert found["colour"] == pytest.approx(math.log(4) / np.mean(lengths), rel=0.03)


class OneProcess:
    """A model without DeepSpeed, as `HeldOut` wants it."""

    data_rank, data_world = 0, 1

    def __init__(self, model: OpenBAModel) -> None:
        self.model = model

    def mode(self, training: bool) -> None:
        self.model.train(training)

    def sum(self, values: list[float]) -> list[float]:
        return values

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        self.model.loss(batch.encoder_ids, batch.mask, batch.decoder_ids, batch.labels)
        counts = (batch.labels != -100).sum(1)
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        sums = torch.zeros(len(counts), 3, dtype=torch.float64)
        sums[:, :2].index_add_(0, rows, self.model.token_scores.T.double())
        sums[:, 2] = counts
        return sums


def test_a_trained_model_is_told_from_a_blind_one(pairs: Path, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = ModelRecipe(d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1,
                        decoder_layers=1, positions=64)  # fmt: skip
    model = OpenBAModel(shape.architecture(tokenizer.size))
    recipe = TrainRecipe.model_validate(
        {"data": {"objective": "instruction"}, "encoder_length": 64, "decoder_length": 32, "batch": 16,
         "budget": "120 steps", "evaluate_every": 60, "heldout_batches": 4}
        | {"optim": OptimRecipe(lr=3e-3)}
    )  # fmt: skip
    heldout = HeldOut(recipe, pairs, tokenizer, micro_batch=5)
    entropies = label_entropies(Pairs(pairs, "train"))
    samples = training_samples(recipe, pairs, "stage1", tokenizer)
    colours = np.flatnonzero([name == "colour" for name in samples.subsets(np.arange(len(samples)))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def train(steps: int, blind: bool) -> dict[str, float]:
        for step in range(steps):
            items = np.random.default_rng(step).choice(colours, 16)
            batch = samples.batch(items, items, 0, tokenizer.pad)
            source = torch.full_like(batch.encoder_ids, 5) if blind else batch.encoder_ids
            (model.loss(source, batch.mask, batch.decoder_ids, batch.labels) / batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        return heldout.measure(OneProcess(model))  # type: ignore[arg-type]

    blind = [line for line in alarms(train(60, blind=True), entropies) if "colour" in line]
    assert len(blind) == 2, blind
    seeing = train(120, blind=False)
    assert [line for line in alarms(seeing, entropies) if "colour" in line] == []
    assert seeing["loss_colour_shuffled"] > 2 * seeing["loss_colour"]
    # The micro-batch must not matter: who lends to whom is settled over all samples.
    again = HeldOut(recipe, pairs, tokenizer, micro_batch=64).measure(OneProcess(model))  # type: ignore[arg-type]
    assert again == pytest.approx(seeing, rel=1e-4, abs=1e-6)
