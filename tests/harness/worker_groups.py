"""Real worker groups on this machine: a fork server, groups of processes, and tiny trainings for them.

DeepSpeed's import costs seconds, a tiny run tenths: so workers are forked from a process that has it,
and a case may kill its group. Owns the groups; what a worker does is `group_worker.py`'s.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tests.harness import ROOT

SECONDS = 600.0
WORKER = "tests.harness.group_worker"
MODEL = {
    "d_model": 32, "num_heads": 2, "kv_channels": 16, "ffn": 64, "ffn_multiple": 16,
    "encoder_layers": 1, "decoder_layers": 2, "positions": 192,
}  # fmt: skip
UL2 = {
    "objective": "ul2",
    "length": 64,
    "denoisers": [
        {"mode": "R", "mean_span": 3, "ratio": 0.15},
        {"mode": "S", "ratio": 0.25},
        {"mode": "X", "mean_span": 8, "ratio": 0.5},
    ],
}
_TRAIN = {
    "data": UL2, "encoder_length": 66, "decoder_length": 66, "batch": 8, "budget": "4 steps",
    "optim": {"lr": 1e-3}, "precision": "fp32", "heldout_batches": 1, "evaluate_every": 4,
}  # fmt: skip
_DEVICE = {
    "name": "core", "kind": "cpu", "peak_tflops": 0.05, "watts": 15, "memory": "1GiB", "utilisation": 0.3,
}  # fmt: skip
_FORKS = multiprocessing.get_context("forkserver")


def start_server(*modules: str) -> None:
    """Started before the first worker is needed: it imports DeepSpeed, and `modules`, meanwhile."""
    _FORKS.set_forkserver_preload([WORKER, *modules])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    forkserver.ensure_running()
    os.environ["PYTHONPATH"] = before or ""


def job(
    out: Path,
    inputs: Mapping[str, str],
    do: str,
    model: Mapping[str, Any] | None = None,
    runtime: Mapping[str, Any] | None = None,
    tensor_parallel: int = 1,
    part: str = "stage1",
    **train: Any,
) -> dict[str, Any]:
    """A tiny Stage I but for what is given; `do` is a `module:function` that takes a Build."""
    train_runtime = {"workers": 2, "micro_batch": 4, "checkpoint_every": 100, **(runtime or {})}
    return {
        "do": do,
        "out": str(out),
        "recipe": {"model": {**MODEL, **(model or {})}, "train": {**_TRAIN, **train}, "part": part},
        "runtime": {
            "device": _DEVICE,
            "devices": 2,
            "train": train_runtime,
            "tensor_parallel": tensor_parallel,
        },
        "inputs": dict(inputs),
    }


class WorkerGroup:
    """The processes of one worker group, which do some jobs one after the other."""

    def __init__(self, folder: Path, world: int, jobs: Mapping[str, Any]) -> None:
        from multiprocessing.process import BaseProcess

        folder.mkdir()
        self.folder = folder
        self.exits: list[int | None] = []
        """Exit codes after `wait`; None: it was still there."""
        self.workers: list[BaseProcess] = [
            _FORKS.Process(target=_work, args=(rank, world, folder, jobs)) for rank in range(world)
        ]
        for worker in self.workers:
            worker.start()

    def results(self) -> dict[str, Any]:
        """Wait for the end; rank 0's results by job."""
        self.wait()
        assert [worker.exitcode for worker in self.workers] == [0] * len(self.workers), self.logs()
        return self.result(0)

    def result(self, rank: int) -> dict[str, Any]:
        """What a worker has left."""
        return json.loads((self.folder / f"results-{rank}.json").read_text())

    def wait(self, seconds: float = SECONDS) -> list[int | None]:
        """Until all have ended, or one has failed and the others had two seconds; the exit codes."""
        end = time.monotonic() + seconds
        while any(worker.exitcode is None for worker in self.workers) and time.monotonic() < end:
            if any(worker.exitcode for worker in self.workers):
                end = min(end, time.monotonic() + 2)  # the others would wait for it
            time.sleep(0.02)
        self.exits = [worker.exitcode for worker in self.workers]
        self.kill()
        return self.exits

    def logs(self) -> str:
        """The ends of the workers' outputs."""
        return "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))

    def kill(self) -> None:
        """End all with kill -9 at once, as a node that loses its power."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.join()

    def wait_for(self, there: Callable[[], bool]) -> None:
        """Until something has happened."""
        end = time.monotonic() + SECONDS
        while not there() and time.monotonic() < end and all(w.exitcode is None for w in self.workers):
            time.sleep(0.001)
        if not there():
            self.kill()
            raise AssertionError(self.logs())

    def kill_at(self, file: Path) -> None:
        """Kill as soon as the file is there."""
        self.wait_for(file.exists)
        self.kill()


def results(root: Path, groups: Mapping[str, tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Run groups (name: workers, jobs) at the same time; rank 0's results of all jobs."""
    started_groups: Sequence[WorkerGroup] = [
        WorkerGroup(root / f"worker-group-{name}", *group) for name, group in groups.items()
    ]
    try:
        return {
            name: facts for started_group in started_groups for name, facts in started_group.results().items()
        }
    finally:
        for started_group in started_groups:
            started_group.kill()


def _work(rank: int, world: int, folder: Path, jobs: Mapping[str, Any]) -> None:
    from tests.harness.group_worker import work  # loaded by the fork server

    work(rank, world, folder, jobs)
