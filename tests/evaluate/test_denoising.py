"""Figure 5's measurement: the loss is the training's own, accuracy is equation 3, mixed is all together."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch

from openba.config import CONFIGS, load
from openba.data.tokenizer import Tokenizer
from openba.evaluate.denoising import HEADS, measure, table
from openba.model.model import IGNORE, OpenBAModel
from openba.model.rows import Rows
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe
from openba.train.batches import heldout_batches, heldout_groups

torch.set_num_threads(1)

SHAPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=2,
    positions=128, init_std=0.3,
)  # fmt: skip
SMALL = [
    "data.length=60",
    "encoder_length=70",
    "decoder_length=60",
    "batch=4",
    "heldout_batches=2",
    "budget=1 steps",
]


def test_loss_and_accuracy_are_those_of_each_sample_by_itself(
    tokenizer: Tokenizer, mixture_folder: Path
) -> None:
    torch.manual_seed(2)
    model = OpenBAModel(SHAPE.architecture(tokenizer.size)).eval()
    recipe = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe, SMALL)
    with torch.no_grad():  # a head that often says what is there
        model.shared_embedding.weight[tokenizer.sentinel(0)] *= 5
    found = measure(model, tokenizer, recipe, mixture_folder)
    assert list(found) == ["R", "S", "X", "mixed"]
    whole = [0.0, 0, 0]
    for name, samples in heldout_groups(recipe, mixture_folder, tokenizer).items():
        loss, right, count = 0.0, 0, 0
        for _, batch in heldout_batches(samples, recipe, 0, 1, 3, tokenizer.pad):
            for row in range(len(batch.labels)):
                source, labels = batch.encoder_ids[row, batch.mask[row]][None], batch.labels[row]
                labels = labels[labels != IGNORE][None]
                decoder = batch.decoder_ids[row : row + 1, : labels.shape[1]]
                with torch.inference_mode():
                    loss += float(model(source, torch.ones_like(source, dtype=torch.bool), decoder, labels))
                    told = model.hidden(source, Rows.padded(source >= 0), decoder, Rows.padded(decoder >= 0))
                    right += int((model.logits(told).argmax(-1) == labels[0]).sum())
                count += labels.shape[1]
        assert found[name]["tokens"] == count
        assert found[name]["loss"] == pytest.approx(loss / count, rel=1e-4)
        assert found[name]["accuracy"] == pytest.approx(100 * right / count)
        whole = [a + b for a, b in zip(whole, (loss, right, count), strict=True)]
    assert whole[1] > 0
    assert found["mixed"]["loss"] == pytest.approx(whole[0] / whole[2], rel=1e-4)
    assert found["mixed"]["accuracy"] == pytest.approx(100 * whole[1] / whole[2])
    file = StringIO()
    table([{**dict.fromkeys(HEADS, 0), "set": name, **row} for name, row in found.items()], file)
    assert [line.split(",")[4] for line in file.getvalue().splitlines()] == ["set", "R", "S", "X", "mixed"]
