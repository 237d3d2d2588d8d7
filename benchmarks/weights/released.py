"""The way of released weights: folder, start, expert, released layout again; and code through new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM

import openba.model.auto  # noqa: F401, registers the classes
from benchmarks.figure import Figure
from benchmarks.weights.fixture import SHAPE, write_fixture
from openba.artifacts import Build
from openba.data import tokenizer_growth
from openba.model import adopt
from openba.model.adapter import AdapterWriter, add_adapter, train_new_rows, trained_state
from openba.model.export import export
from openba.model.files import load_weights
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.model.origin import resolve
from openba.recipes.adapter import AdapterRecipe
from openba.recipes.growth import GrowthRecipe
from openba.recipes.model import ModelRecipe
from openba.recipes.start import WeightsRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.start import start_weights

CODE = 'def f(x):\n\tif x:\n        return {"a":  x}\n\n\n    # 全角，Ａ\n    return None\n'
_STEPS = 200
_RATE = 1e-2


def figures(root: Path) -> Iterator[Figure]:
    """Yield the round trip of names, the merged adapter's distance, and the code that comes back."""
    folder = root / "published"
    tokenizer = write_fixture(folder)
    start = root / "start"
    start.mkdir()
    adopt.build(Build(start, resolve(WeightsRecipe(weights=str(folder))), {}))
    grown_folder = root / "grown"
    grown_folder.mkdir()
    recipe = GrowthRecipe()
    tokenizer_growth.build(Build(grown_folder, recipe, {"tokenizer": start / "model"}))
    grown = Tokenizer.load(grown_folder)
    model = OpenBAModel(ModelRecipe.model_validate(SHAPE).architecture(grown.size))
    model.load_state_dict(start_weights(start / "model", model.architecture, grown))
    adapter = AdapterRecipe(kind="lora", rank=8)
    add_adapter(model, adapter)
    train_new_rows(model, tokenizer.size, grown.size - tokenizer.size)
    source = _learn_code(model, grown)
    AdapterWriter(model, adapter, grown, start / "model").write(root / "expert", trained_state(model))
    merged, _ = load_model(root / "expert")
    apart = _logits_apart(model, merged, source, grown.size)
    yield Figure("weights/merged_logits_apart", apart, "", 1e-5)
    (answer,) = generate(merged, grown, [source], len(grown.encode(CODE)) + 8)
    wrong_bytes = float(answer.encode() != CODE.encode())
    yield Figure("weights/code_round_trip_differs", wrong_bytes, "", 0.0, peer=f"{len(CODE.encode())} bytes")
    export(root / "expert", root / "again", "released")
    names = set(load_weights(folder)) ^ set(load_weights(root / "again"))
    yield Figure("weights/released_names_that_differ", len(names), "", 0.0)
    loaded, info = AutoModelForSeq2SeqLM.from_pretrained(root / "again", output_loading_info=True)
    problems = sum(len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    yield Figure("weights/released_loading_problems", problems, "", 0.0, peer=type(loaded).__name__)


def _learn_code(model: OpenBAModel, grown: Tokenizer) -> list[int]:
    """Train on one pair; returns its source."""
    source = grown.pieces.prompt(grown.encode("Write f."))
    target = [grown.sentinel(0), *grown.encode(CODE), grown.eos]
    labels = torch.tensor([target])
    decoder_ids = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    encoder_ids = torch.tensor([source])
    mask = torch.ones_like(encoder_ids).bool()
    optimizer = torch.optim.Adam(trained_state(model).values(), lr=_RATE)
    for _ in range(_STEPS):
        (model.loss(encoder_ids, mask, decoder_ids, labels) / len(target)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return source


def _logits_apart(unmerged: OpenBAModel, merged: OpenBAModel, source: list[int], size: int) -> float:
    """Largest distance of the logits of `size` ids, relative to the largest logit.

    The merged model has no row but those of its tokenizer's ids; the trained one has padding rows too.
    """
    from openba.model.rows import Rows

    encoder_ids = torch.tensor([source])
    rows = Rows.ragged(torch.ones_like(encoder_ids).bool())
    with torch.no_grad():
        logits = [
            model.logits(model.hidden(encoder_ids, rows, encoder_ids, rows))[..., :size]
            for model in (unmerged.eval(), merged)
        ]
    return float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())
