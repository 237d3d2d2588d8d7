"""Figure 5: loss and next-token accuracy of trained models on R-, S-, X-denoising and all of them.

Owns the measurement after training, on the mixture's held-out part, and its table. How samples are made is
the training's own (`openba.train.batches`), so the sets are the same for every model of one mixture.

    python -m openba.evaluate.denoising MIXTURE MODEL [MODEL ...] > figure-5.csv
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F

from openba.config import CONFIGS, load
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.files import load_model
from openba.model.model import IGNORE, OpenBAModel
from openba.model.rows import Rows
from openba.recipes.train import TrainRecipe, TrainStep
from openba.train.batches import Batch, heldout_batches, heldout_groups

_MICRO = 16
HEADS = ("model", "encoder_layers", "decoder_layers", "parameters", "set", "loss", "accuracy", "tokens")


def measure(
    model: OpenBAModel, tokenizer: Tokenizer, recipe: TrainRecipe, mixture: Path
) -> dict[str, dict[str, float]]:
    """Of each denoiser's mode, and of `mixed`, all of them together.

    Args:
        model: in evaluation mode.
        tokenizer: the model's and the mixture's.
        recipe: a training of Stage I; its denoisers, lengths, `batch` and `heldout_batches` are used.
        mixture: output of a mixture step.

    Returns:
        Set -> `loss` (nats a target token), `accuracy` (equation 3, in percent: the likeliest next token is
        the right one, given all before it) and `tokens`.

    Raises:
        UserError: a set has no sample.
    """
    sums: dict[str, list[float]] = {}
    for name, samples in heldout_groups(recipe, mixture, tokenizer).items():
        if len(samples) == 0:
            raise UserError(f"{mixture}: no held-out sample for {name}; raise heldout in the mixture")
        sums[name] = [0.0, 0.0, 0.0]
        for _, batch in heldout_batches(samples, recipe, 0, 1, _MICRO, tokenizer.pad):
            sums[name] = [a + b for a, b in zip(sums[name], _sums(model, batch), strict=True)]
    sums["mixed"] = [sum(column) for column in zip(*sums.values(), strict=True)]
    return {
        name: {"loss": loss / tokens, "accuracy": 100 * right / tokens, "tokens": tokens}
        for name, (loss, right, tokens) in sums.items()
    }


@torch.inference_mode()
def _sums(model: OpenBAModel, batch: Batch) -> tuple[float, float, float]:
    """Cross entropy, right tokens and tokens of a batch."""
    device = model.shared_embedding.weight.device
    labels = batch.labels.to(device)
    source, target = Rows.ragged(batch.mask.to(device)), Rows.ragged(labels != IGNORE)
    hidden = model.hidden(batch.encoder_ids.to(device), source, batch.decoder_ids.to(device), target)
    logits, wanted = model.logits(hidden), target.flat(labels)
    loss = F.cross_entropy(logits, wanted, reduction="sum")
    return float(loss), float((logits.argmax(-1) == wanted).sum()), float(len(wanted))


def table(rows: Sequence[dict[str, Any]], file: TextIO) -> None:
    """The measurements as CSV, a line for each model and set."""
    write = csv.DictWriter(file, HEADS, lineterminator="\n")
    write.writeheader()
    write.writerows(rows)


def main(arguments: Sequence[str]) -> None:
    """Measure every model, a stage's output folder, on one mixture; its own recipe says how it denoises."""
    if len(arguments) < 2:
        raise UserError("denoising: give the mixture's folder and at least one Stage I folder of the store")
    mixture, rows = Path(arguments[0]), []
    for folder in map(Path, arguments[1:]):
        model, tokenizer = load_model(folder / "model")
        found = measure(model, tokenizer, _recipe(folder), mixture)
        shape = model.architecture
        about = {
            "model": folder.name,
            "encoder_layers": shape.num_layers,
            "decoder_layers": shape.num_decoder_layers,
            "parameters": sum(weight.numel() for weight in model.parameters()),
        }
        rows += [{**about, "set": name, **values} for name, values in found.items()]
    table(rows, sys.stdout)


def _recipe(folder: Path) -> TrainRecipe:
    """The recipe in the manifest of a store's folder; else the paper's Stage I."""
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return TrainStep.model_validate(json.loads(manifest.read_text(encoding="utf-8"))["recipe"]).train
    return load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"openba: {error}")
