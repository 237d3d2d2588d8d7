"""Real trainings: cost of checkpoints and metrics, and the fall of Stage II's loss.

A Stage I of the `tiny` pipeline's size, then a Stage II with the paper's lengths from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import corpora
from benchmarks.figure import Figure
from openba.artifacts import Build
from openba.config import find_config, load
from openba.data import mixture
from openba.data import tokenizer_training as tokenizers
from openba.data.store import TokenStore
from openba.recipes.data import MixtureRecipe, TokenizerRecipe
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe
from openba.train.log import read_rows
from tests.harness import worker_groups

# `Any`: settings of recipes, which validate them.
Settings = dict[str, Any]
SECONDS_BETWEEN_SAVES = 60
_SAVE_EVERY_STEPS = 10
_STEPS = {"stage1": 60, "stage2": 30}


def make_inputs(root: Path) -> dict[str, str]:
    """Build a tokenizer and a mixture of `tiny`'s sizes from real texts; return their folders."""
    folders = {name: root / name for name in ("corpus", "tokenizer", "data")}
    for folder in folders.values():
        folder.mkdir()
    corpora.write(folders["corpus"] / "text.parquet", corpora.prose())
    tokenizer_recipe = TokenizerRecipe(kind="unigram", vocab_size=8000, train_characters=1_500_000)
    tokenizers.build(Build(folders["tokenizer"], tokenizer_recipe, {"corpus": folders["corpus"]}))
    parts = {"stage1": "900k tokens", "stage2": "260k tokens"}
    mixture_recipe = MixtureRecipe.model_validate(
        {"parts": parts, "heldout": "60k tokens", "shares": {"en": 0.5, "zh": 0.5}}
    )
    mixture_inputs = {name: folders[name] for name in ("corpus", "tokenizer")}
    mixture.build(Build(folders["data"], mixture_recipe, mixture_inputs))
    return {name: str(folders[name]) for name in ("tokenizer", "data")}


def figures(root: Path, inputs: Mapping[str, str]) -> Iterator[Figure]:
    """Train Stage I and then Stage II from it with two workers."""
    root.mkdir()
    results = worker_groups.results(root, {"stages": (2, _jobs(root, inputs))})
    rows = read_rows(root / "stage1" / "metrics.jsonl")
    events = read_rows(root / "stage1" / "events.jsonl")
    assert not [event for event in events if event["event"] == "save failed"]
    save_count = _STEPS["stage1"] // _SAVE_EVERY_STEPS - 1  # none after the last step
    stall_seconds = sum(row["checkpoint_stall"] for row in rows[1:]) / save_count
    parameters = results["stage1"]["parameters"]
    comparison = f"{1000 * stall_seconds:.0f} ms a save of {parameters:,} parameters"
    share = 100 * stall_seconds / SECONDS_BETWEEN_SAVES
    yield Figure("train/checkpoint_stall_of_a_minute", share, "%", 5, peer=comparison)
    training_seconds = sum(row["tokens"] / row["tokens_per_second"] for row in rows)
    metrics_seconds = results["stage1"]["metrics_seconds"]
    comparison = (
        f"{1000 * metrics_seconds / len(rows):.2f} of {1000 * training_seconds / len(rows):.0f} ms a step"
    )
    share = 100 * metrics_seconds / training_seconds
    yield Figure("train/metrics_of_step_time", share, "%", 1, peer=comparison)
    held_out = results["stage2"]["heldout"]
    first_loss = held_out[0]["loss"]
    last_loss = held_out[-1]["loss"]
    comparison = f"held-out S loss {first_loss:.3f} after Stage I, {last_loss:.3f} after Stage II"
    fall = 100 * (1 - last_loss / first_loss)
    yield Figure("train/stage2_fall_of_s_loss", fall, "%", 0, "higher", peer=comparison)
    stage1_ids = _document_ids(Path(inputs["data"]) / "stage1")
    stage2_ids = _document_ids(Path(inputs["data"]) / "stage2")
    comparison = f"of {len(stage1_ids)} and {len(stage2_ids)} documents"
    shared_count = len(stage1_ids & stage2_ids)
    yield Figure("train/stage2_documents_of_stage1", shared_count, "", 0, peer=comparison)


def _jobs(root: Path, inputs: Mapping[str, str]) -> dict[str, Settings]:
    model = load(find_config("model", "tiny"), ModelRecipe).model_dump(mode="json")
    stage1 = load(find_config("pretrain", "stage1"), TrainRecipe)
    stage2 = load(find_config("pretrain", "stage2"), TrainRecipe)
    settings_by_stage: dict[str, Settings] = {
        "stage1": {
            "data": stage1.data.model_dump(mode="json") | {"length": 128},
            "encoder_length": 120,
            "decoder_length": 88,
            "batch": 32,
            "optim": {"lr": 4e-3, "warmup": 10},
        },
        "stage2": {
            "data": stage2.data.model_dump(mode="json"),
            "encoder_length": stage2.encoder_length,
            "decoder_length": stage2.decoder_length,
            "batch": 8,
            "optim": {"lr": 1e-3, "warmup": 5},
        },
    }
    jobs = {}
    for name, settings in settings_by_stage.items():
        job_inputs = inputs if name == "stage1" else {**inputs, "start": str(root / "stage1")}
        jobs[name] = worker_groups.job(
            root / name,
            job_inputs,
            f"{worker_groups.WORKER}:measured_stage",
            runtime={"micro_batch": settings["batch"] // 2, "checkpoint_every": _SAVE_EVERY_STEPS},
            part=name,
            heldout_batches=4,
            model=model,
            budget=f"{_STEPS[name]} steps",
            evaluate_every=30,
            **settings,
        )
    return jobs


def _document_ids(folder: Path) -> set[str]:
    return set(TokenStore(folder).documents["id"].to_pylist())
