"""Group `soak`: Stage I and II of a small pipeline under random faults must end as if nothing had happened.

An undisturbed run gives the weights and losses that count. Then the same pipeline runs in another home while
a fault from `soak_faults` hits it every 20 to 60 seconds; whenever the command ends with an error it is run
again, as its message says. At the end weights are compared bit for bit, the history in MLflow with the
undisturbed run's, and every refusal must have been one line. The seed is printed first; it draws the faults,
while what is running when one strikes depends on the machine.

Settings, from the environment: OPENBA_SOAK_SEEDS (such as 1,2,3; default: one seed from the clock),
OPENBA_SOAK_STEPS (optimiser steps of Stage I; default 6000), OPENBA_SOAK_PAUSE (such as 20,60 seconds).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from benchmarks.figure import ROOT, Figure
from benchmarks.operations.soak_faults import Disks, Fault, Faults, Processes
from openba.train.log import METRICS, read_rows
from tasks.services import free_port
from tasks.tracking import FINGERPRINT
from tasks.ui import mlflow_server
from tests.harness.site import SMALL

_OPENBA = [str(Path(sys.executable).with_name("openba"))]
_TRAININGS = ("stage1", "stage2")
_REMEDY = re.compile(r"delete (\S+) and run again")
_MOST_RUNS = 200
_SECONDS = 3600.0
"""After so long a seed has failed."""

PIPELINE = f"""{SMALL}
runtime:
  train: {{workers: 2, micro_batch: 8, checkpoint_every: 50 steps, stall_seconds: 15, max_failures: 10}}
"""


def figures() -> Iterator[Figure]:
    """The undisturbed run, then one run for each seed."""
    seeds = os.environ.get("OPENBA_SOAK_SEEDS", str(int(time.time()) % 100_000))
    with tempfile.TemporaryDirectory(prefix="soak", dir="/var/tmp") as folder:
        calm = Campaign(Path(folder), "calm", seed=None)
        calm.run()
        yield Figure("soak/undisturbed", calm.seconds, "s")
        failed = 0
        for seed in map(int, seeds.split(",")):
            print(f"soak: seed {seed}", file=sys.stderr, flush=True)
            campaign = Campaign(Path(folder), f"seed-{seed}", seed, calm)
            wrong = campaign.check(calm)
            failed += bool(wrong)
            for line in wrong:
                print(f"soak: seed {seed}: {line}", file=sys.stderr, flush=True)
            yield Figure(f"soak/{seed}/differences", len(wrong), "", 0)
            yield Figure(f"soak/{seed}/seconds", campaign.seconds, "s")
            yield Figure(f"soak/{seed}/faults", len(campaign.faults), "")
            yield Figure(f"soak/{seed}/goodput", 100 * calm.training_seconds() / campaign.seconds, "%")
        yield Figure("soak/seeds_that_differ", failed, "", 0)


class Campaign:
    """One home, in which the pipeline runs until it is complete."""

    def __init__(self, root: Path, name: str, seed: int | None, calm: Campaign | None = None) -> None:
        self.root, self.name, self.seed = root / name, name, seed
        self.root.mkdir()
        self.home, self.store = self.root / "home", self.root / "store"
        self.log = self.root / "output.log"
        self.faults: list[Fault] = []
        self.refusals: list[str] = []
        self.seconds = 0.0
        self.pipeline = self.root / "small.yaml"
        steps = os.environ.get("OPENBA_SOAK_STEPS", "6000")
        self.pipeline.write_text(PIPELINE)
        self.settings = [f"stages.stage1.budget={steps} steps", f"stages.stage1.evaluate_every={steps} steps"]
        self.settings += [
            f"stages.stage2.budget={int(steps) // 3} steps",
            f"stages.stage2.evaluate_every={steps} steps",
        ]
        (self.root / "experts").mkdir()  # the pipeline's folder of experts; none is needed
        self.port = free_port()
        self.disks = Disks(self.home, self.store) if seed is not None else None
        if calm is not None:
            self._take_data(calm)
            self._run_disturbed()

    def run(self) -> None:
        """Run the pipeline to its end, undisturbed.

        Raises:
            RuntimeError: it failed.
        """
        began = time.monotonic()
        server = self._mlflow()
        try:
            server.wait()
            if self._start().wait() != 0:
                raise RuntimeError(
                    f"the undisturbed run failed; see {self.log}:\n{self.log.read_text()[-2000:]}"
                )
        finally:
            server.stop()
        self.seconds = time.monotonic() - began

    def training_seconds(self) -> float:
        """Seconds of the trainings, starts of their workers included."""
        return sum(self._manifest(name)["seconds"] for name in _TRAININGS)

    def check(self, calm: Campaign) -> list[str]:
        """What differs from the undisturbed run, a line each."""
        wrong = [f"refused with more than a line: {text}" for text in self.refusals]
        for name in _TRAININGS:
            ours, theirs = (each._output(name) for each in (self, calm))
            if (ours / "model" / "model.safetensors").read_bytes() != (
                theirs / "model" / "model.safetensors"
            ).read_bytes():
                wrong.append(f"{name}: the weights differ")
            losses = [
                [(r["step"], r["loss"]) for r in read_rows(folder / METRICS)] for folder in (ours, theirs)
            ]
            if losses[0] != losses[1]:
                wrong.append(f"{name}: the losses in {METRICS} differ")
            if (history := self._history(name)) != losses[1]:
                wrong.append(f"{name}: MLflow has {len(history)} losses, {len(losses[1])} are right")
        return wrong

    def _run_disturbed(self) -> None:
        assert self.seed is not None
        assert self.disks is not None
        began, draw = time.monotonic(), random.Random(self.seed)
        least, most = (float(n) for n in os.environ.get("OPENBA_SOAK_PAUSE", "20,60").split(","))
        server = self._mlflow()
        try:
            server.wait()
            for _ in range(_MOST_RUNS):
                process = self._start()
                faults = Faults(draw, self.home, self.store, self.disks, Processes(process.pid), server)
                while process.poll() is None:
                    if not _wait(process, draw.uniform(least, most)):
                        fault = faults.strike()
                        self.faults.append(fault)
                        print(
                            f"soak: {time.monotonic() - began:6.0f} s: {fault}", file=sys.stderr, flush=True
                        )
                    if time.monotonic() - began > _SECONDS:
                        raise RuntimeError(
                            f"seed {self.seed}: not complete in {_SECONDS:.0f} s; see {self.log}"
                        )
                faults.end()
                if process.returncode == 0:
                    break
                self._after_refusal(process.returncode)
        finally:
            server.stop()
            self.disks.close()
        self.seconds = time.monotonic() - began
        kinds = Counter(fault.kind for fault in self.faults)
        print(f"soak: seed {self.seed}: {dict(kinds)}", file=sys.stderr, flush=True)

    def _after_refusal(self, code: int) -> None:
        """Do what the message says; note a message that is no line."""
        text = self.log.read_text(errors="replace").rpartition(_BEGIN)[2]
        print(f"soak: ended with {code}: {text.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)
        if code >= 0 and "Traceback (most recent call last)" in text:
            self.refusals.append(text[-1500:])
        for address in _REMEDY.findall(text):
            shutil.rmtree(address.removeprefix("file://"), ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [*_OPENBA, "run", str(self.pipeline), "--until", "stage2"]
        for setting in self.settings:
            command += ["--set", setting]
        with self.log.open("ab") as file:
            file.write(f"{_BEGIN}\n".encode())
            file.flush()
            return subprocess.Popen(
                command, cwd=ROOT, env=os.environ | self._environment(), stdout=file, stderr=subprocess.STDOUT
            )

    def _environment(self) -> dict[str, str]:
        values = {
            "OPENBA_HOME": str(self.home),
            "OPENBA_STORE": str(self.store),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port}",
            "PYTHONPATH": str(ROOT),
        }
        if self.disks is not None:
            values["PYTHONPATH"] = f"{self.disks.clock}:{ROOT}"  # a clock that the campaign can move
        return values

    def _mlflow(self) -> Any:
        folder = self.root / "mlflow"
        folder.mkdir(exist_ok=True)
        return mlflow_server(f"sqlite:///{folder}/mlflow.db", self.port, folder / "log", folder / "artifacts")

    def _take_data(self, calm: Campaign) -> None:
        """The steps before the trainings, which are not what is tried."""
        for folder in calm.store.iterdir():
            if folder.name not in _TRAININGS and not folder.name.startswith("."):
                shutil.copytree(folder, self.store / folder.name)

    def _output(self, name: str) -> Path:
        (manifest,) = self.store.glob(f"{name}/*/manifest.json")
        return manifest.parent

    def _manifest(self, name: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self._output(name) / "manifest.json").read_text())
        return manifest

    def _history(self, name: str) -> list[tuple[int, float]]:
        """Step and loss of each point in MLflow, by step."""
        client = MlflowClient(tracking_uri=f"sqlite:///{self.root}/mlflow/mlflow.db")
        wanted = f"tags.`{FINGERPRINT}` = '{self._output(name).name}'"
        (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
        runs = client.search_runs([experiment.experiment_id], wanted)
        return [
            (point.step, point.value)
            for run in runs
            for point in sorted(client.get_metric_history(run.info.run_id, "loss"), key=lambda p: p.step)
        ]


_BEGIN = "soak: a run begins"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ends within so long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
