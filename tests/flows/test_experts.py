"""`openba run` without pretraining: weights in the released layout, five experts, the registry."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openba.config import CONFIGS
from openba.model.files import load_weights
from openba.tokenizer.tokenizer import Tokenizer
from tests.harness.released import MODEL, to_bin_shards, write_folder

OPENBA = str(Path(sys.executable).with_name("openba"))
EXPERTS = {"chat", "code", "instructgen", "ner", "tool"}

PIPELINE = """\
extends: experts
name: mine
model: {{extends: {configs}/model/openba-15b-released, {shape}, vocab_multiple: 128, dropout: 0.0}}
runtime: cpu
experts:
  folder: {configs}/finetune/tiny
  start: {{weights: {weights}}}
  train:
    encoder_length: 192
    decoder_length: 128
    batch: 4
    budget: 3 steps
    precision: fp32
    optim: {{lr: 1.0e-3, min_lr: 1.0e-4, warmup: 1 steps}}
    evaluate_every: 3 steps
    heldout_batches: 1
registry: {{gate: tiny}}
"""


def _environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_"))}
    return {**kept, "OPENBA_HOME": str(home)}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A published folder of `.bin` shards in fp16."""
    folder = write_folder(tmp_path_factory.mktemp("released"), tokenizer)
    to_bin_shards(folder, load_weights(folder))
    return folder


@pytest.fixture(scope="module")
def pipeline(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("d_model", "num_heads", "kv_channels", "ffn", "encoder_layers", "decoder_layers", "positions")
    shape = ", ".join(f"{name}: {MODEL[name]}" for name in names)
    path = tmp_path_factory.mktemp("pipeline") / "mine.yaml"
    path.write_text(PIPELINE.format(configs=CONFIGS, weights=released, shape=shape))
    return path


@pytest.fixture(scope="module")
def home(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run has left."""
    home = tmp_path_factory.mktemp("run") / "home"
    done = subprocess.run(
        [OPENBA, "run", str(pipeline)], env=_environment(home), capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.timeout(900)
def test_five_experts_of_released_weights_are_trained_evaluated_and_registered(
    home: Path, released: Path
) -> None:
    report = json.loads((home / "report" / "report.json").read_text())
    assert {row["name"] for row in report["registry"]} == {f"openba-{name}" for name in EXPERTS}
    assert {row["step"] for row in report["training"]} == EXPERTS
    assert {row["model"] for row in report["evaluations"]} == EXPERTS
    assert not any(row["name"].startswith(("stage", "mixture", "clean")) for row in report["steps"])
    # The experts begin with the published numbers.
    (weights,) = (home / "store" / "weights-experts").iterdir()
    for path in released.glob("pytorch_model*"):
        digests = [hashlib.sha256(p.read_bytes()).digest() for p in (path, weights / "model" / path.name)]
        assert digests[0] == digests[1]


@pytest.mark.timeout(900)
def test_a_second_run_builds_nothing_and_a_registered_expert_is_a_start(
    home: Path, pipeline: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(
        f"extends: {pipeline.with_suffix('')}\nname: again\n"
        "experts: {start: {weights: 'models:/openba-ner@candidate'}}\n"
    )
    planned = [
        subprocess.run(
            [OPENBA, "plan", str(path), "--json"],
            env=_environment(home),
            capture_output=True,
            text=True,
            timeout=200,
        )
        for path in (pipeline, again)
    ]
    states = [{row["name"]: row["state"] for row in json.loads(done.stdout)["steps"]} for done in planned]
    assert set(states[0].values()) == {"hit"}
    assert states[1]["weights-experts"] == states[1]["ner"] == "miss"
    shown = subprocess.run(
        [OPENBA, "show", "weights-experts", "-p", str(again)],
        env=_environment(home), capture_output=True, text=True, timeout=200,
    ).stdout  # fmt: skip
    assert "store/ner/" in shown
