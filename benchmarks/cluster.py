"""Training on a Ray cluster of two and of four nodes that are network namespaces, disturbed and not.

Owns the faults and what is compared: the exported model, byte for byte, with that of a run without a fault.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.namespaces import wait_for
from benchmarks.ray_nodes import RayCluster, Training
from openba.train.log import METRICS, read_rows

STEPS = 24
PARTITION_SECONDS = 20.0
SMALL = (
    "sources=[people-daily, bbc-news, python-code]",
    "tokenizer={vocab_size: 4000, train_characters: 300000}",
    "mixture={stage1: 40k tokens, stage2: 20k tokens, heldout: 8k tokens}",
)


@dataclass(frozen=True)
class Result:
    """What a training left."""

    facts: dict[str, Any]
    digest: str
    """Of the exported weights."""
    steps: list[int]
    """As logged."""
    seconds: float


def job(
    out: Path, inputs: dict[str, Path], workers: int, steps: int = STEPS, seconds: float = 60
) -> dict[str, Any]:
    """The smallest Stage I with dropout and a checkpoint every second step, for `RayCluster.train`.

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
    gang = {"workers": workers, "micro_batch": 4, "checkpoint_every": 2, "stall_seconds": seconds}
    return {
        "out": str(out),
        "inputs": {name: str(folder) for name, folder in inputs.items()},
        "recipe": {"model": model, "train": train},
        "runtime": {"device": device | {"utilisation": 0.3}, "devices": workers, "train": gang},
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
    """Cut one of its nodes off for twenty seconds once training is under way."""
    reach(training, 5)
    machine = cluster.network.machines[max(cluster.working())]
    machine.unplug()
    time.sleep(PARTITION_SECONDS)
    machine.plug()


def kill(cluster: RayCluster, training: Training) -> int:
    """Kill -9 of all that runs on one of its nodes, but not the head's, once it is under way; which one."""
    reach(training, 5)
    number = max(cluster.working())
    assert number > 1
    cluster.kill(number)
    return number
