"""Real trainings: what saving and measuring cost, and what Stage II learns.

A Stage I of the `tiny` pipeline's size, then a Stage II of the paper's lengths from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import corpora
from benchmarks.figure import Figure
from openba.artifacts import Build
from openba.config import load
from openba.data import mixture
from openba.data import tokenizer_training as tokenizers
from openba.data.store import TokenStore
from openba.graph import find_config
from openba.recipes.data import MixtureRecipe, TokenizerRecipe
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe
from openba.train.log import read_rows
from tests.harness import gangs

SECONDS_BETWEEN_SAVES = 60
_SAVE_EVERY = 10
_STEPS = {"stage1": 60, "stage2": 30}


def make_inputs(root: Path) -> dict[str, str]:
    """Tokenizer and mixture of the `tiny` pipeline's sizes, of the benchmarks' real texts."""
    folders = {name: root / name for name in ("corpus", "tokenizer", "data")}
    for folder in folders.values():
        folder.mkdir()
    corpora.write(folders["corpus"] / "text.parquet", corpora.prose())
    words = TokenizerRecipe(kind="unigram", vocab_size=8000, train_characters=1_500_000)
    tokenizers.build(Build(folders["tokenizer"], words, {"corpus": folders["corpus"]}))
    parts = {"stage1": "900k tokens", "stage2": "260k tokens"}
    recipe = MixtureRecipe.model_validate(
        {"parts": parts, "heldout": "60k tokens", "shares": {"en": 0.5, "zh": 0.5}}
    )
    mixture.build(Build(folders["data"], recipe, {k: folders[k] for k in ("corpus", "tokenizer")}))
    return {name: str(folders[name]) for name in ("tokenizer", "data")}


def figures(root: Path, inputs: Mapping[str, str]) -> Iterator[Figure]:
    """Two workers train Stage I, then Stage II from it."""
    root.mkdir()
    found = gangs.results(root, {"stages": (2, _jobs(root, inputs))})
    rows, events = (read_rows(root / "stage1" / f"{name}.jsonl") for name in ("metrics", "events"))
    saves = _STEPS["stage1"] // _SAVE_EVERY - 1  # none after the last step
    stalls = sum(row["checkpoint_stall"] for row in rows[1:]) / saves
    assert not [event for event in events if event["event"] == "save failed"]
    told = f"{1000 * stalls:.0f} ms a save of {found['stage1']['parameters']:,} parameters"
    share = 100 * stalls / SECONDS_BETWEEN_SAVES
    yield Figure("train/checkpoint_stall_of_a_minute", share, "%", 5, peer=told)
    seconds = sum(row["tokens"] / row["tokens_per_second"] for row in rows)
    spent = found["stage1"]["metrics_seconds"]
    told = f"{1000 * spent / len(rows):.2f} of {1000 * seconds / len(rows):.0f} ms a step"
    yield Figure("train/metrics_of_step_time", 100 * spent / seconds, "%", 1, peer=told)
    first, last = (found["stage2"]["heldout"][place]["loss"] for place in (0, -1))
    told = f"held-out S loss {first:.3f} after Stage I, {last:.3f} after Stage II"
    fall = 100 * (1 - last / first)
    yield Figure("train/stage2_fall_of_s_loss", fall, "%", 0, "higher", peer=told)
    documents = [_documents(Path(inputs["data"]) / part) for part in _STEPS]
    told = f"of {len(documents[0])} and {len(documents[1])} documents"
    yield Figure("train/stage2_documents_of_stage1", len(documents[0] & documents[1]), "", 0, peer=told)


def _jobs(root: Path, inputs: Mapping[str, str]) -> dict[str, Any]:
    model = load(find_config("model", "tiny"), ModelRecipe).model_dump(mode="json")
    stage1, stage2 = (load(find_config("pretrain", name), TrainRecipe) for name in _STEPS)
    recipes: dict[str, dict[str, Any]] = {
        "stage1": {
            "data": stage1.data.model_dump(mode="json") | {"length": 128},
            "encoder_length": 120, "decoder_length": 88, "batch": 32, "optim": {"lr": 4e-3, "warmup": 10},
        },
        "stage2": {
            "data": stage2.data.model_dump(mode="json"), "encoder_length": stage2.encoder_length,
            "decoder_length": stage2.decoder_length, "batch": 8, "optim": {"lr": 1e-3, "warmup": 5},
        },
    }  # fmt: skip
    found = {}
    for name, change in recipes.items():
        own = inputs if name == "stage1" else {**inputs, "start": str(root / "stage1")}
        runtime = {"micro_batch": change["batch"] // 2, "checkpoint_every": _SAVE_EVERY}
        change = {**change, "model": model, "budget": f"{_STEPS[name]} steps", "evaluate_every": 30}
        found[name] = gangs.job(
            root / name,
            own,
            f"{gangs.WORKER}:measured_stage",
            runtime=runtime,
            part=name,
            heldout_batches=4,
            **change,
        )
    return found


def _documents(folder: Path) -> set[str]:
    return set(TokenStore(folder).documents["id"].to_pylist())
