"""Group `soak`: Stage I and II of a small pipeline under random faults must end as if nothing had happened.

An undisturbed run gives the weights and losses that count. Then the same pipeline runs in another home while
a fault from `soak_faults` hits it every 20 to 60 seconds; whenever the command ends with an error it is run
again, as its message says. At the end weights are compared bit for bit, the history in MLflow with the
undisturbed run's, and every refusal must have been one line. A seed is one run or as many as take ten minutes
together. It is printed first; it draws the faults, while what is running when one strikes depends on the
machine.

Settings, from the environment: OPENBA_SOAK_SEEDS (such as 7 or 1-20; default: one seed from the clock),
OPENBA_SOAK_STEPS (optimiser steps of Stage I; default 600), OPENBA_SOAK_PAUSE (such as 20,60 seconds), and
OPENBA_SOAK_FOLDER: there the undisturbed run and a row for each seed (`results.jsonl`) stay, so that a second
invocation goes on with the seeds that have no row and sums up all; a seed that failed leaves its home there.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from mlflow.tracking import MlflowClient

from benchmarks.figure import ROOT, Figure, circumstances
from benchmarks.operations.soak_faults import Disks, Fault, Faults, Processes, remove
from openba.train.log import METRICS, read_rows
from tasks.services import Service, free_port
from tasks.tracking import FINGERPRINT
from tasks.ui import mlflow_server
from tests.harness.site import SMALL

_OPENBA = [str(Path(sys.executable).with_name("openba"))]
_TRAININGS = ("stage1", "stage2")
_REMEDY = re.compile(r"delete (\S+) and run again")
_LEAST_SECONDS = 600.0
_MOST_SECONDS = 3600.0
"""How long a seed's faults strike at least; after how long one run of it has failed."""
RESULTS = "results.jsonl"

PIPELINE = f"""{SMALL}
runtime:
  train: {{workers: 2, micro_batch: 8, checkpoint_every: 5 steps, stall_seconds: 40, max_failures: 10}}
"""


def figures() -> Iterator[Figure]:
    """Run without faults, unless that run exists, then once for each seed that has no row yet."""
    for number in (signal.SIGINT, signal.SIGTERM):  # processes and mounts are to be cleared away, also then
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="soak", dir="/var/tmp") as temporary:
        folder = Path(os.environ.get("OPENBA_SOAK_FOLDER", temporary))
        calm = Campaign(folder, "calm")
        if not calm.is_complete:
            calm.run()
        results = folder / RESULTS
        for seed in _seeds():
            if seed in {row["seed"] for row in read_rows(results)}:
                continue
            print(f"soak: seed {seed}", file=sys.stderr, flush=True)
            row = _try_seed(folder, seed, calm)
            with results.open("a") as file:
                file.write(f"{json.dumps(row)}\n")
            print(f"soak: {row}", file=sys.stderr, flush=True)
        yield from _summary(read_rows(results))


def _seeds() -> list[int]:
    """Read the seeds of OPENBA_SOAK_SEEDS, where `1-20` is all from 1 to 20."""
    seeds: list[int] = []
    for part in os.environ.get("OPENBA_SOAK_SEEDS", str(int(time.time()) % 100_000)).split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def _try_seed(folder: Path, seed: int, calm: Campaign) -> dict[str, Any]:
    """Run the pipeline under the faults of a seed until ten minutes are over; the row of `results.jsonl`."""
    draw = random.Random(seed)
    campaigns = list[Campaign]()
    differences = list[str]()
    while not differences and sum(campaign.seconds for campaign in campaigns) < _LEAST_SECONDS:
        name = f"seed-{seed}-{len(campaigns) + 1}"
        remove(folder / name)
        campaigns.append(campaign := Campaign(folder, name))
        try:
            campaign.disturb(draw, calm)
            differences = campaign.differences(calm)
        except Exception as error:  # the other seeds are still to be run
            differences = [f"{type(error).__name__}: {error}"]
        for line in differences:
            print(f"soak: {name}: {line}", file=sys.stderr, flush=True)
        if not differences:
            remove(campaign.root)
    seconds = sum(campaign.seconds for campaign in campaigns)
    return {
        "seed": seed,
        "differences": differences,
        "faults": dict(Counter(fault.kind for campaign in campaigns for fault in campaign.faults)),
        "runs": len(campaigns),
        "commands": sum(campaign.commands for campaign in campaigns),
        "seconds": seconds,
        "goodput": sum(campaign.useful_seconds for campaign in campaigns) / max(seconds, 1),
        "commit": circumstances()["commit"],
    }


def _summary(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Yield a figure or two of each seed, and of all together."""
    for row in rows:
        yield Figure(f"soak/{row['seed']}/differences", len(row["differences"]), "", 0)
        yield Figure(f"soak/{row['seed']}/goodput", 100 * row["goodput"], "%")
    faults = sum((Counter(row["faults"]) for row in rows), Counter[str]())
    for kind, count in sorted(faults.items()):
        yield Figure(f"soak/faults/{kind}", count, "")
    yield Figure("soak/faults", faults.total(), "")
    yield Figure("soak/hours", sum(row["seconds"] for row in rows) / 3600, "h")
    yield Figure("soak/goodput, median", 100 * statistics.median(row["goodput"] for row in rows), "%")
    yield Figure("soak/seeds", len(rows), "")
    yield Figure("soak/seeds that differ", sum(bool(row["differences"]) for row in rows), "", 0)


class Campaign:
    """One home, in which the pipeline runs until it is complete."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root / name
        self.root.mkdir(parents=True, exist_ok=True)
        self.home = self.root / "home"
        self.store = self.root / "store"
        self.log = self.root / "output.log"
        self.faults: list[Fault] = []
        self.refusals: list[str] = []
        self.commands = 0
        self.seconds = self.useful_seconds = 0.0
        self.pipeline = self.root / "small.yaml"
        steps = os.environ.get("OPENBA_SOAK_STEPS", "600")
        self.pipeline.write_text(PIPELINE)
        self.settings = [f"stages.stage1.budget={steps} steps", f"stages.stage1.evaluate_every={steps} steps"]
        self.settings += [
            f"stages.stage2.budget={int(steps) // 3} steps",
            f"stages.stage2.evaluate_every={steps} steps",
        ]
        (self.root / "experts").mkdir(exist_ok=True)  # the pipeline's folder of experts; none is needed
        self.port = free_port()
        self.disks: Disks | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the last training has its output."""
        return any(self.store.glob(f"{_TRAININGS[-1]}/*/manifest.json"))

    def run(self) -> None:
        """Run the pipeline to its end, undisturbed.

        Raises:
            RuntimeError: it failed.
        """
        server = self._mlflow()
        try:
            server.wait()
            if self._start().wait() != 0:
                raise RuntimeError(
                    f"the undisturbed run failed; see {self.log}:\n{self.log.read_text()[-2000:]}"
                )
        finally:
            self._end_processes()
            server.stop()

    def _step_seconds(self) -> float:
        """Seconds of the steps in the final logs: no starts, nothing that was done twice."""
        rows = [row for name in _TRAININGS for row in read_rows(self._output(name) / METRICS)]
        return sum(row["tokens"] / row["tokens_per_second"] for row in rows)

    def differences(self, calm: Campaign) -> list[str]:
        """Differences from the undisturbed run, a line each."""
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

    def disturb(self, draw: random.Random, calm: Campaign) -> None:
        """Run the pipeline, again and again where it ends with an error, while faults strike it.

        Raises:
            RuntimeError: it was not complete in an hour.
        """
        began = time.monotonic()
        self.disks = Disks(self.home, self.store)
        self._take_data(calm)
        server = self._mlflow()
        try:
            server.wait()
            self._run_until_complete(draw, server, began)
        finally:
            self.seconds = time.monotonic() - began
            self._end_processes()
            server.stop()
            self.disks.close()
        self.useful_seconds = self._step_seconds()

    def _run_until_complete(self, draw: random.Random, server: Service, began: float) -> None:
        assert self.disks is not None
        least, most = (float(n) for n in os.environ.get("OPENBA_SOAK_PAUSE", "20,60").split(","))
        while time.monotonic() - began < _MOST_SECONDS:
            self.commands += 1
            process = self._start()
            faults = Faults(draw, self.home, self.store, self.disks, Processes(process.pid), server)
            while not _wait(process, draw.uniform(least, most)) and time.monotonic() - began < _MOST_SECONDS:
                fault = faults.strike()
                self.faults.append(fault)
                seconds = time.monotonic() - began
                print(f"soak: {seconds:6.0f} s: {fault}", file=sys.stderr, flush=True)
            if process.poll() == 0:
                return
            if process.poll() is None:
                process.terminate()
                process.wait()
            self._after_refusal(process.returncode)
        raise RuntimeError(f"not complete in {_MOST_SECONDS:.0f} s; see {self.log}")

    def _end_processes(self) -> None:
        """Kill what is left of this home's runs, such as a worker that was stopped and never went on."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("OPENBA_HOME") == str(self.home):
                    process.kill()

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

    def _mlflow(self) -> Service:
        folder = self.root / "mlflow"
        folder.mkdir(exist_ok=True)
        return mlflow_server(f"sqlite:///{folder}/mlflow.db", self.port, folder / "log", folder / "artifacts")

    def _take_data(self, calm: Campaign) -> None:
        """Build the steps before the trainings, which are not what is tried."""
        for folder in calm.store.iterdir():
            if folder.name not in _TRAININGS and not folder.name.startswith("."):
                shutil.copytree(folder, self.store / folder.name)

    def _output(self, name: str) -> Path:
        (manifest,) = self.store.glob(f"{name}/*/manifest.json")
        return manifest.parent

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
