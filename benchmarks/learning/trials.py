"""Small trainings of our model and of transformers' T5 on the same batches, to find out what learns.

Owns the four tasks (copying, news topic, review sentiment, UL2), one trial's loop in plain torch, and the
file of a trial's result: a trial that was run is not run again. Topic and sentiment are trained together and
measured apart. No DeepSpeed, no Ray: what is compared is model, initial values and optimiser.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.model.t5 import t5
from openba.artifacts import materialize
from openba.data.denoise import shuffled
from openba.data.instruct import Pairs
from openba.data.store import TokenStore
from openba.graph import Pipeline, find_pipeline
from openba.home import Home
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.recipes.train import UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import HELDOUT_SEED, Batch, DenoisedSamples, PairSamples, Samples, collate

Task = Literal["copy", "classify", "ul2"]
SETTINGS = ["flan.tasks=[bbc-topic, review-sentiment]", "flan.shares={en: 0.5, zh: 0.5}"]
"""The `tiny` pipeline's data with the two classification tasks alone, as many samples of each."""
_COPY_SYMBOLS = 64
_COPY_LENGTHS = (4, 10)
_FIRST_COPY_ID = 1000
_UL2_LENGTH = 64
_BATCH_SIZE: Mapping[Task, int] = {"copy": 32, "classify": 32, "ul2": 16}
_MOST_HELD_OUT = 256
_DATA_SEED = 1234
MEASURE_EVERY = 50


@dataclass(frozen=True)
class Trial:
    """One training. The defaults are the tiny shape with what its recipe has now."""

    task: Task
    model: Literal["openba", "t5"]
    rate: float
    steps: int
    warmup: int = 20
    schedule: Literal["constant", "cosine"] = "constant"
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0
    weight_decay: float = 0.01
    init_std: float | None = None
    scale_embedding: bool = True
    sandwich: bool = True
    encoder_layers: int = 1
    decoder_layers: int = 3
    width: int = 128
    start: Trial | None = None
    """Trained first; its weights are the initial values."""
    seed: int = 1

    @property
    def key(self) -> str:
        """Twelve hex digits that name its files; other data are another trial."""
        data = [pipeline().step(name).fingerprint for name in ("mixture", "flan")]
        canonical = json.dumps([asdict(self), data], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class Copies:
    """Random strings of 64 symbols; the target is the source. The same draws in every run."""

    def __init__(self, count: int, seed: int, end: int) -> None:
        generator = np.random.default_rng(seed)
        lengths = generator.integers(_COPY_LENGTHS[0], _COPY_LENGTHS[1] + 1, count)
        last = _FIRST_COPY_ID + _COPY_SYMBOLS
        self.rows = [np.append(generator.integers(_FIRST_COPY_ID, last, n), end) for n in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, items: np.ndarray, samples: np.ndarray, seed: int, pad: int) -> Batch:
        """Strings `items`; nothing else is random."""
        return collate([(self.rows[item], self.rows[item]) for item in items.tolist()], pad)


@dataclass(frozen=True)
class Data:
    """Training samples of a task, and what is held out: name -> samples and which of them."""

    training: Samples | Copies
    heldout: Mapping[str, tuple[Samples | Copies, np.ndarray]]


@cache
def pipeline() -> Pipeline:
    """Read the `tiny` pipeline with the two classification tasks."""
    return Pipeline(find_pipeline("tiny"), SETTINGS, strict=True)


@cache
def tokenizer() -> Tokenizer:
    """Load the tokenizer of the `tiny` pipeline."""
    return Tokenizer.load(Home.from_environment().store.path(pipeline().step("tokenizer")))


def make_inputs() -> None:
    """Build tokenizer, mixture and pairs in `OPENBA_HOME`, where that has not been done."""
    store = Home.from_environment().store
    for step in [*pipeline().step("mixture").walk(), *pipeline().step("flan").walk()]:
        materialize(step, store, pipeline().runtime(step))


def data_of(task: Task) -> Data:
    """Return the samples of a task."""
    store = Home.from_environment().store
    if task == "copy":
        end = tokenizer().eos
        return Data(Copies(20_000, 1, end), {"copy": (Copies(256, 2, end), np.arange(256))})
    if task == "classify":
        folder = store.path(pipeline().step("flan"))
        training = Pairs(folder, "train")
        heldout = Pairs(folder, "heldout")
        tasks = np.array([heldout.task(index) for index in range(len(heldout))])
        samples = PairSamples(heldout)
        named = {name: (samples, np.flatnonzero(tasks == n)) for n, name in enumerate(heldout.names)}
        return Data(PairSamples(training), named)
    folder = store.path(pipeline().step("mixture"))
    recipe = pipeline().config.stages["stage1"].data
    assert isinstance(recipe, UL2Recipe)
    recipe = recipe.model_copy(update={"length": _UL2_LENGTH})
    windows = DenoisedSamples(TokenStore(folder / "stage1"), recipe, tokenizer())
    heldout_windows = DenoisedSamples(TokenStore(folder / "heldout"), recipe, tokenizer())
    measured = np.arange(min(len(heldout_windows), _MOST_HELD_OUT))
    return Data(windows, {"ul2": (heldout_windows, measured)})


def make_model(trial: Trial) -> nn.Module:
    """Create the trial's model with its initial values, in training mode."""
    torch.manual_seed(trial.seed)
    shape = pipeline().config.model.model_copy(
        update={
            "init_std": trial.init_std,
            "scale_embedding": trial.scale_embedding,
            "sandwich": trial.sandwich,
            "encoder_layers": trial.encoder_layers,
            "decoder_layers": trial.decoder_layers,
            "d_model": trial.width,
            "num_heads": trial.width // 32,
            "ffn": 4 * trial.width,
        }
    )
    architecture = shape.architecture(tokenizer().size)
    model = t5(architecture, "sdpa") if trial.model == "t5" else OpenBAModel(architecture)
    if trial.start is not None:
        run(trial.start)
        model.load_state_dict(load_file(_folder() / f"{trial.start.key}.safetensors"))
    return model.train()


def losses_and_hits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return a batch's summed loss, with its gradient, and which targets are the likeliest, bool `[rows]`."""
    if isinstance(model, OpenBAModel):
        loss = model.loss(batch.encoder_ids, batch.mask, batch.decoder_ids, batch.labels)
        counts = (batch.labels != IGNORE).sum(1)
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        hits = torch.zeros(len(counts)).index_add_(0, rows, model.token_scores[1])
        return loss, hits == counts
    out = model(
        input_ids=batch.encoder_ids,
        attention_mask=batch.mask.long(),
        decoder_input_ids=batch.decoder_ids,
        labels=batch.labels,
    )
    hits = (out.logits.argmax(-1) == batch.labels) | (batch.labels == IGNORE)
    return out.loss * batch.targets, hits.all(1)


@torch.no_grad()
def measure(model: nn.Module, data: Data) -> dict[str, dict[str, float]]:
    """Return for each held-out task `loss` and `shuffled` (next row's source), nats a token, and `exact`."""
    model.eval()
    figures: dict[str, dict[str, float]] = {}
    for name, (samples, items) in data.heldout.items():
        sums = np.zeros(4)
        for start in range(0, len(items), 64):
            chosen = items[start : start + 64]
            batch = samples.batch(chosen, chosen, HELDOUT_SEED, tokenizer().pad)
            loss, hits = losses_and_hits(model, batch)
            other = replace(batch, encoder_ids=batch.encoder_ids.roll(1, 0), mask=batch.mask.roll(1, 0))
            sums += [float(loss), float(losses_and_hits(model, other)[0]), int(hits.sum()), batch.targets]
        total, shuffled, exact, tokens = sums.tolist()
        figures[name] = {"loss": total / tokens, "shuffled": shuffled / tokens, "exact": exact / len(items)}
    model.train()
    return figures


def rate_of(trial: Trial, step: int) -> float:
    """Rate of a step, counted from 0: linear warm-up, then constant or cosine to a tenth."""
    if step < trial.warmup:
        return trial.rate * (step + 1) / trial.warmup
    if trial.schedule == "constant":
        return trial.rate
    done = (step - trial.warmup) / max(1, trial.steps - trial.warmup)
    return trial.rate * (0.55 + 0.45 * math.cos(math.pi * done))


def run(trial: Trial) -> list[dict[str, Any]]:
    """Train; return a measurement every 50 steps, from the trial's file if it was run before."""
    path = _folder() / f"{trial.key}.json"
    if path.exists():
        return json.loads(path.read_text())["measurements"]
    torch.set_num_threads(1)
    data = data_of(trial.task)
    model = make_model(trial)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": trial.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, trial.beta2),
        eps=trial.epsilon,
    )
    measurements: list[dict[str, Any]] = []
    batch_size = _BATCH_SIZE[trial.task]
    for step in range(trial.steps):
        numbers = np.arange(step * batch_size, (step + 1) * batch_size)
        items = shuffled(numbers, len(data.training), _DATA_SEED)
        batch = data.training.batch(items, numbers, _DATA_SEED, tokenizer().pad)
        loss, _ = losses_and_hits(model, batch)
        (loss / batch.targets).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate_of(trial, step)
        norm = float(nn.utils.clip_grad_norm_(parameters, trial.clip))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % MEASURE_EVERY == 0 or step + 1 == trial.steps:
            row = {"step": step + 1, "gradient_norm": norm, "tasks": measure(model, data)}
            if isinstance(model, OpenBAModel):
                row |= {"likeness": likeness(model.shared_embedding.weight)}
            measurements.append(row)
    if isinstance(model, OpenBAModel):
        save_file(model.state_dict(), path.with_suffix(".safetensors"))
    path.write_text(json.dumps({"trial": asdict(trial), "measurements": measurements}, indent=1))
    return measurements


@torch.no_grad()
def likeness(embedding: Tensor) -> float:
    """Mean cosine of the embeddings `[vocab, width]` to their mean: 0 for random ones, 1 if all are alike."""
    return float(torch.cosine_similarity(embedding, embedding.mean(0, keepdim=True)).mean())


def _folder() -> Path:
    folder = Home.from_environment().root / "learning"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
