"""Training on a Ray cluster of two and of four nodes that are network namespaces, disturbed and not.

Owns the faults and what is compared: the exported model, byte for byte, with that of a run without a fault.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from openba.errors import UserError
from openba.train.log import METRICS, read_rows
from tests.harness.namespaces import Network, missing, wait_for
from tests.harness.ray_nodes import BIN, RayCluster, Training

STEPS = 40
PARTITION_SECONDS = 20.0
SMALL = (
    "runtime.train.workers=2",
    "model.d_model=32",
    "model.num_heads=2",
    "model.kv_channels=16",
    "model.ffn=96",
    "stages.stage1.budget=6 steps",
    "stages.stage1.optim.warmup=2 steps",
    "stages.stage1.evaluate_every=6 steps",
    "stages.stage1.batch=8",
    "stages.stage1.heldout_batches=1",
    "sources=[people-daily, bbc-news, python-code]",
    "tokenizer.vocab_size=4000",
    "tokenizer.train_characters=300000",
    "mixture.parts.stage1=60k tokens",
    "mixture.parts.stage2=20k tokens",
    "mixture.heldout=8k tokens",
)


def figures() -> Iterator[Figure]:
    """Run the tiny pipeline's data and Stage I on two nodes, then faults on two and on four."""
    if reason := missing():
        print(f"cluster: not run: {reason}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="oba") as folder:
        for nodes in (2, 4):
            cluster_folder = Path(folder) / str(nodes)
            cluster_folder.mkdir()
            with Network(cluster_folder) as network:
                cluster = RayCluster(network, nodes)
                if nodes == 2:
                    inputs = yield from _pipeline(cluster, Path(folder) / "home")
                yield from _faults(cluster, nodes, inputs)


def _pipeline(cluster: RayCluster, home: Path) -> Generator[Figure, None, dict[str, Path]]:
    """`openba run` of a user who sees the cluster and the disk; returns what Stage I was given."""
    command = [str(BIN / "openba"), "run", "tiny", "--until", "stage1"]
    for setting in SMALL:
        command += ["--set", setting]
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address, "OPENBA_HOME": str(home)}
    log = cluster.folder / "pipeline.log"
    began = time.monotonic()
    if cluster.network.start(command, environment, log).wait(400):
        raise UserError(f"openba run on a cluster of two nodes failed: {log.read_text()[-2000:]}")
    yield Figure("cluster of 2: openba run to Stage I", time.monotonic() - began, "s")
    (manifest,) = (json.loads(file.read_text()) for file in home.glob("store/stage1/*/manifest.json"))
    input_fingerprints = manifest["identity"]["inputs"]
    return {
        name: home / "store" / step / input_fingerprints[name]
        for name, step in (("tokenizer", "tokenizer"), ("data", "mixture"))
    }


def _faults(cluster: RayCluster, nodes: int, inputs: dict[str, Path]) -> Iterator[Figure]:
    """Run the same training three times, one worker a node."""
    trainings = {
        name: job(cluster.folder / name, inputs, nodes) for name in ("undisturbed", "partition", "killed")
    }
    undisturbed_result = result(cluster.train("undisturbed", trainings["undisturbed"]))
    training = cluster.train("partition", trainings["partition"])
    partition(cluster, training)
    yield from _compared(f"cluster of {nodes}, partition of 20 s", result(training), undisturbed_result)
    training = cluster.train("killed", trainings["killed"])
    number = kill(cluster, training)
    began = time.monotonic()
    done = len(read_rows(training.out / METRICS))
    cluster.start(number)
    reach(training, done + 1)
    seconds = time.monotonic() - began
    yield from _compared(f"cluster of {nodes}, node killed and back", result(training), undisturbed_result)
    yield Figure(f"cluster of {nodes}, from a killed node to the next step", seconds, "s")


def _compared(name: str, training_result: Result, undisturbed_result: Result) -> Iterator[Figure]:
    lost = set(undisturbed_result.steps) - set(training_result.steps)
    twice = len(training_result.steps) - len(set(training_result.steps))
    yield Figure(f"{name}: steps lost or told twice", len(lost) + twice, "", 0)
    yield Figure(f"{name}: weights differ", float(training_result.digest != undisturbed_result.digest), "", 0)


@dataclass(frozen=True)
class Result:
    """Logged steps and final weights of a training."""

    facts: dict[str, Any]
    digest: str
    """Of the exported weights."""
    steps: list[int]
    """As logged."""
    seconds: float


def job(
    out: Path, inputs: dict[str, Path], workers: int, steps: int = STEPS, seconds: float = 60
) -> dict[str, Any]:
    """Return the smallest Stage I with dropout and a checkpoint every second step, for `RayCluster.train`.

    Args: `seconds`: the watchdog's patience.
    """
    denoisers = [
        {"mode": "R", "mean_span": 3, "ratio": 0.15}, {"mode": "S", "ratio": 0.25},
        {"mode": "X", "mean_span": 8, "ratio": 0.5},
    ]  # fmt: skip
    model = {
        "d_model": 32, "num_heads": 2, "kv_channels": 16, "ffn": 64, "ffn_multiple": 16, "encoder_layers": 1,
        "decoder_layers": 2, "positions": 192, "dropout": 0.1,
    }  # fmt: skip
    train = {
        "data": {"objective": "ul2", "length": 64, "denoisers": denoisers}, "encoder_length": 66,
        "decoder_length": 66, "batch": 12, "budget": f"{steps} steps", "optim": {"lr": 1e-3},
        "precision": "fp32", "heldout_batches": 1, "evaluate_every": steps,
    }  # fmt: skip
    device = {"name": "core", "kind": "cpu", "peak_tflops": 0.05, "watts": 15, "memory": "1GiB"}
    train_runtime = {"workers": workers, "micro_batch": 4, "checkpoint_every": 2, "stall_seconds": seconds}
    return {
        "out": str(out),
        "inputs": {name: str(folder) for name, folder in inputs.items()},
        "recipe": {"model": model, "train": train, "part": "stage1"},
        "runtime": {"device": device | {"utilisation": 0.3}, "devices": workers, "train": train_runtime},
    }


def result(training: Training) -> Result:
    """Wait for it."""
    began = time.monotonic()
    facts = training.facts()
    weights = training.out / "model" / "model.safetensors"
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    steps = [row["step"] for row in read_rows(training.out / METRICS)]
    return Result(facts, digest, steps, time.monotonic() - began)


def reach(training: Training, step: int) -> None:
    """Wait until so many steps are done."""

    def there() -> bool:
        if training.process.poll() is not None:
            raise RuntimeError(training.log.read_text()[-3000:])
        rows = read_rows(training.out / METRICS)
        return bool(rows) and rows[-1]["step"] >= step

    wait_for(there, 240, f"step {step}")


def partition(cluster: RayCluster, training: Training) -> None:
    """Cut the head off from the other nodes and the user for twenty seconds once training is under way."""
    reach(training, 5)
    head = cluster.network.machines[1]
    head.unplug()
    time.sleep(PARTITION_SECONDS)
    head.plug()


def kill(cluster: RayCluster, training: Training) -> int:
    """Kill -9 of all that runs on one of its nodes, but not the head's, once it is under way; which one."""
    reach(training, 1)
    number = max(cluster.working())
    assert number > 1
    reach(training, 5)
    cluster.kill(number)
    return number
