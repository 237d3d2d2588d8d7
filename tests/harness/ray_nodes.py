"""A Ray cluster of machines that are namespaces, and a training on it through the pipeline's own way.

Owns the start of Ray's nodes and of a user's process that trains a step (`python -m tests.harness.ray_nodes
JOB.json`, inside). What is measured stands in `cluster.py`.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.services import NICENESS
from tests.harness import ROOT
from tests.harness.namespaces import Machine, Network, wait_for

GCS, DASHBOARD = 6379, 8265
BIN = Path(sys.executable).parent


class RayCluster:
    """Ray with one CPU a node; the head is machine 1."""

    def __init__(self, network: Network, nodes: int) -> None:
        """Start them all; returns when they have joined."""
        self.network, self.folder = network, network.folder
        token = self.folder / "token"
        token.write_text(secrets.token_hex(16))
        token.chmod(0o600)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_", "MLFLOW_"))}
        self.environment = (
            kept
            | NICENESS
            | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_DISABLE_MEMORY_MONITOR": "1",
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            }
        )
        self.address = f"http://{network.machine(1).address}:{DASHBOARD}"
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for number in range(1, nodes + 1):
            self.start(number)
        self.wait(nodes)

    def start(self, number: int) -> Machine:
        """A node on a machine, which is new if it has ended."""
        machine = self.network.machines.get(number) or self.network.machine(number)
        command = [
            str(BIN / "ray"),
            "start",
            "--block",
            "--disable-usage-stats",
            "--num-cpus",
            "1",
        ]
        command += ["--node-ip-address", machine.address, "--temp-dir", str(machine.folder)]
        command += ["--object-store-memory", str(80 * 2**20)]
        if number == 1:
            command += ["--head", "--port", str(GCS), "--dashboard-host", machine.address]
        else:
            command += ["--address", f"{self.network.machines[1].address}:{GCS}"]
        self.processes[number] = machine.start(command, self.environment, machine.folder / "ray.log")
        return machine

    def wait(self, nodes: int, seconds: float = 120) -> None:
        """Until so many nodes are alive."""
        log = self.folder / "nodes.log"
        look = [str(BIN / "python"), "-m", "tests.harness.ray_nodes", "count"]

        def joined() -> bool:
            self.network.start(look, self.environment | {"RAY_ADDRESS": self.address}, log).wait()
            lines = log.read_text().splitlines()
            return bool(lines) and lines[-1] == f"{nodes} alive"

        wait_for(joined, seconds, f"{nodes} Ray nodes")

    def working(self) -> list[int]:
        """Numbers of the nodes on which a training's workers run."""
        return [n for n, machine in self.network.machines.items() if machine.runs("RayTrainWorker")]

    def kill(self, number: int) -> None:
        """Kill -9 of all that runs on a node."""
        self.network.machines.pop(number).end()
        self.processes.pop(number).wait()

    def train(self, name: str, job: dict[str, Any]) -> Training:
        """Start a user's process that trains a step on this cluster."""
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(job))
        command = [str(BIN / "python"), "-m", "tests.harness.ray_nodes", str(file)]
        log = file.with_suffix(".log")
        environment = self.environment | {"RAY_ADDRESS": self.address}
        return Training(self.network.start(command, environment, log), Path(job["out"]), log)


@dataclass
class Training:
    """A user's process and the folder that is filled."""

    process: subprocess.Popen[bytes]
    out: Path
    log: Path

    def facts(self, seconds: float = 300) -> dict[str, Any]:
        """Wait for the end.

        Raises:
            RuntimeError: it failed, with what it said.
        """
        if self.process.wait(seconds):
            raise RuntimeError(self.log.read_text()[-3000:])
        return json.loads(self.log.read_text().splitlines()[-1])


def main() -> None:
    """Count the nodes, or run one training step through `tasks.ray_jobs`; the last line is its facts."""
    if sys.argv[1] == "count":
        print(f"{_alive()} alive")
        return
    from openba.artifacts import Build, Step
    from openba.graph import TRAIN
    from openba.home import Home
    from openba.recipes.runtime import PipelineRuntime
    from openba.recipes.train import TrainStep
    from tasks.ray_jobs import RayJobs
    from tasks.services import RayHead

    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    recipe = TrainStep.model_validate(job["recipe"])
    runtime = PipelineRuntime.model_validate(job["runtime"])
    inputs = {key: Path(path) for key, path in job["inputs"].items()}
    jobs = RayJobs(RayHead(Home(out.parent), runtime), dict(runtime.job_environment), "")
    done = jobs.run(Step(out.name, TRAIN, recipe), Build(out, recipe, inputs, runtime), lambda: None)
    print(json.dumps(done.facts))


def _alive() -> int:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    asked = urllib.request.Request(
        f"{os.environ['RAY_ADDRESS']}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            found = json.load(answer)["data"]["summary"]
    except OSError:
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in found)


if __name__ == "__main__":
    main()
