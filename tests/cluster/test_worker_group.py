"""A training job on real Ray nodes: what is around the workers dies or is taken away, and nothing is lost."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from openba import durable
from openba.recipes.runtime import PipelineRuntime
from openba.train.log import read_rows
from openba.train.stopping import EXIT_PREEMPTED
from tasks.job import SPEC, STOPPED
from tasks.services import free_port
from tests.harness.worker_groups import job

pytestmark = pytest.mark.timeout(600)

STEPS = 60
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
# With its dashboard: Ray Train asks it which places a dead controller has left taken.
head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": int(sys.argv[1])}
cluster = Cluster(initialize_head=True, head_node_args=head)
for _ in range(2):
    cluster.add_node(num_cpus=2)
other = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})  # of somebody else on this machine
print(cluster.address, flush=True)
sys.stdin.read()
"""


@dataclass
class Nodes:
    """A Ray cluster on this machine: a head without places for workers, two nodes with two each."""

    address: str
    process: psutil.Process

    def find(self, name: str) -> psutil.Process:
        """A process of this cluster by its title."""
        family = self.process.children(recursive=True)
        return next(p for p in family if p.is_running() and name in " ".join(p.cmdline()))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as folder:  # short: sockets lie below it
        environment = {**os.environ, **TOKEN, "RAY_TMPDIR": folder}
        started = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(free_port())],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert started.stdout is not None
        nodes = Nodes(started.stdout.readline().strip(), psutil.Process(started.pid))
        yield nodes
        for process in [*nodes.process.children(recursive=True), nodes.process]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.wait()


class Job:
    """`python -m tasks.job` as a Ray job runs it."""

    def __init__(self, folder: Path, inputs: dict[str, str], address: str) -> None:
        self.folder, self.out = folder / "job", folder / "out"
        self.folder.mkdir()
        spec = job(
            self.out, inputs, "", model={"dropout": 0.1}, budget=f"{STEPS} steps", evaluate_every=STEPS,
            runtime={"checkpoint_every": 2, "micro_batch": 4},
        )  # fmt: skip
        self.out.mkdir()
        spec["runtime"] = PipelineRuntime.model_validate(spec["runtime"]).model_dump(mode="json")
        types = {
            "recipe_type": "openba.recipes.train:TrainStep",
            "runtime_type": "openba.recipes.runtime:PipelineRuntime",
        }
        spec |= {"function": "openba.train.stage:build", "place": "worker_group", **types}
        durable.write_record(self.folder / SPEC, spec)
        self.environment = {**os.environ, **TOKEN, "RAY_ADDRESS": address}
        self.environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        self.log = folder / "job.log"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tasks.job", str(self.folder)]
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def rows(self, name: str = "metrics") -> list[dict[str, Any]]:
        return read_rows(self.out / f"{name}.jsonl")

    def wait_for(self, process: subprocess.Popen[bytes], attempts: int, steps: int) -> None:
        """Until the group of this number has done so many steps of its own."""
        end = time.monotonic() + 240
        while time.monotonic() < end and process.poll() is None:
            started = self.rows("attempts")
            if len(started) >= attempts and len(self.rows()) >= started[-1]["from"] + steps:
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-3000:])


def test_faults_5_13_a_lost_controller_a_drained_node_and_a_killed_driver(
    nodes: Nodes, tokenizer_folder: Path, mixture_folder: Path, tmp_path: Path
) -> None:
    run = Job(tmp_path, {"tokenizer": str(tokenizer_folder), "data": str(mixture_folder)}, nodes.address)
    process = run.start()
    run.wait_for(process, attempts=1, steps=3)
    nodes.find("ray::TrainController").kill()
    run.wait_for(process, attempts=2, steps=3)
    before = {file.read_text() for file in run.folder.glob("rank-*.node")}
    (node,) = before
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    drain = [
        Path(sys.executable).with_name("ray"),
        "drain-node",
        "--address",
        nodes.address,
        "--node-id",
        node,
    ]
    subprocess.run([*drain, *reason, "--deadline-remaining-seconds", "600"], env=run.environment, check=True)
    run.wait_for(process, attempts=3, steps=3)
    assert {file.read_text() for file in run.folder.glob("rank-*.node")}.isdisjoint(before)
    stopped = [row for row in run.rows("events") if row["event"] == "stopped"]
    assert [row["saved"] for row in stopped] == [True]
    assert run.rows("attempts")[2]["from"] == stopped[0]["step"]  # no step is lost
    process.kill()  # the driver; its controller and workers end with it
    process.wait()
    again = run.start()
    run.wait_for(again, attempts=4, steps=1)
    again.terminate()
    assert again.wait(120) == EXIT_PREEMPTED, run.log.read_text()[-3000:]
    assert "stopped after step" in str(durable.read_record(run.folder / STOPPED))
    assert [row["step"] for row in run.rows()] == list(range(1, len(run.rows()) + 1))
