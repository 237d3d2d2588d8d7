"""A whole installation on loopback: Prefect server and worker, MLflow server, Ray head, a small pipeline.

Owns starting it from nothing in one folder, as docs/operations.md says, asking what it did, and ending it.
Every part is a process of its own that can be stopped and started again at the same address.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
from mlflow.tracking import MlflowClient

from openba.config import CONFIGS, find_config, load
from openba.home import Home
from openba.recipes.runtime import PipelineRuntime
from tasks.doctor import AUTOMATIONS
from tasks.services import LOOPBACK, RayHead, Service, answers, free_port
from tasks.ui import mlflow_server
from tests.harness import ROOT

_FOUR_STEPS = (
    "optim: {warmup: 1 steps}, batch: 8, budget: 4 steps, evaluate_every: 4 steps, heldout_batches: 1"
)
SMALL = f"""
extends: {CONFIGS}/pipeline/tiny
name: small
sources: [people-daily, bbc-news, python-code]
tokenizer: {{vocab_size: 4000, train_characters: 300000}}
mixture: {{parts: {{stage1: 20k tokens, stage2: 20k tokens}}, heldout: 8k tokens}}
model: {{d_model: 32, num_heads: 2, kv_channels: 16, ffn: 96}}
stages:
  stage1: {{{_FOUR_STEPS}, data: {{length: 64}}}}
  stage2: {{{_FOUR_STEPS}, data: {{length: 64}}}}
  stage3: {{{_FOUR_STEPS}}}
flan: {{tasks: [translate-zh-en, translate-en-zh]}}
experts:
  folder: experts
  train: {{{_FOUR_STEPS}}}
evaluate: [stage3]
benchmarks: [translate-zh-en]
"""
"""All steps of `tiny` in seconds; experts stand in a folder beside it."""
PIPELINE = f"""{SMALL}
runtime: {{train: {{workers: 1, checkpoint_every: 20 steps}}}}
registry: {{models: {{openba-flan: stage3}}, gate: default}}
"""
EXPERT = """
title: Headlines, in the place of chat
register_as: openba-chat
tasks: [bbc-title]
benchmarks: [bbc-title]
train: {extends: ../../pretrain/finetune}
"""
AUTOMATIONS_FILE = "infra/prefect/automations.yaml"
JOB_ENDED = {"STOPPED", "SUCCEEDED", "FAILED"}
LOCAL = ("PREFECT_", "RAY_", "MLFLOW_", "OPENBA_")


class Site:
    """The servers of one folder and what a user does with them."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder, self.home = folder, Home(folder / "home")
        self.settings = settings or {}
        self.services: dict[str, Service] = {}
        self.ports = {name: free_port() for name in ("prefect", "mlflow")}
        self.api = f"http://{LOOPBACK}:{self.ports['prefect']}/api"
        self.tracking = f"http://{LOOPBACK}:{self.ports['mlflow']}"
        self.pipeline = self._configs()
        self.ray: RayHead | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the site is given."""
        values = {
            "OPENBA_HOME": str(self.home.root),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "DO_NOT_TRACK": "1",
            "MLFLOW_TRACKING_URI": self.tracking,
            "PYTHONPATH": str(ROOT),
        }
        return values | self.settings

    def start(self) -> None:
        """All servers, an own Ray head last; nothing of the caller's settings is left in its environment."""
        for name in [name for name in os.environ if name.startswith(LOCAL)]:
            del os.environ[name]
        os.environ |= self.environment
        self.start_prefect()
        self.start_mlflow()
        self.ray = RayHead(self.home, load(find_config("runtime", "cpu"), PipelineRuntime))
        os.environ["RAY_ADDRESS"] = self.ray.dashboard
        for part in (self.services["prefect"], self.services["mlflow"], self.ray):
            part.wait()

    def start_prefect(self) -> None:
        """The Prefect server, again if it was stopped."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK]
        command += ["--port", str(self.ports["prefect"])]
        self._start("prefect", command, lambda: answers(f"{self.api}/health"))

    def start_mlflow(self) -> None:
        """The MLflow server, again if it was stopped."""
        store = f"sqlite:///{self.folder / 'mlflow.db'}"
        log = self.folder / "mlflow.log"
        artifacts = self.folder / "mlartifacts"
        self.services["mlflow"] = mlflow_server(store, self.ports["mlflow"], log, artifacts)

    def deploy(self) -> None:
        """Run `infra/prefect/deploy.sh` from a copy of the checkout that is gone before any worker starts."""
        copy = self.folder / "deploying checkout"
        for name in ("openba", "tasks", "flows", "configs", "infra/prefect"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(ROOT / "prefect.yaml", copy / "prefect.yaml")
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [copy / "infra" / "prefect" / "deploy.sh"],
            env=os.environ | {"PYTHONPATH": str(copy), "PATH": programs}, capture_output=True, text=True,
        )  # fmt: skip
        shutil.rmtree(copy)
        if done.returncode:
            raise RuntimeError(f"deploy.sh: {done.stdout}{done.stderr}")

    def start_worker(self) -> None:
        """A worker of the pool."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "openba", "--name", "one"]
        self._start("worker", command, lambda: True)

    def stop(self) -> None:
        """The worker first: it would wait for a server that is gone."""
        for name in ("worker", "mlflow", "prefect"):
            if service := self.services.pop(name, None):
                service.stop()
        if self.ray:
            self.ray.stop()

    def prefect(self, *arguments: str) -> str:
        """Prefect's own command, from the repository's top folder."""
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"prefect {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def create_automations(self, seconds: int) -> None:
        """The shipped automations again under other names, with so many seconds in place of 600."""
        text = (ROOT / AUTOMATIONS_FILE).read_text().replace("within: 600", f"within: {seconds}")
        for name in AUTOMATIONS:
            text = text.replace(name, f"{name}-soon")
        path = self.folder / "automations.yaml"
        path.write_text(text)
        self.prefect("automation", "create", "--from-file", str(path))

    def delete_automations(self) -> None:
        """Delete what `create_automations` made: a flow on a busy machine takes longer to start than that."""
        for row in self._post("automations/filter", {"limit": 200}):
            if row["name"] in [f"{name}-soon" for name in AUTOMATIONS]:
                httpx.delete(f"{self.api}/automations/{row['id']}", timeout=30).raise_for_status()

    def emit(self, event: str, resource: str, **payload: str) -> None:
        """One event from outside."""
        self.prefect("event", "emit", event, "--resource-id", resource, "--payload", json.dumps(payload))

    def pending(self, deployment: str) -> str:
        """A run of a deployment as a worker leaves it that dies before it starts the flow; its id."""
        flow, _, name = deployment.partition("/")
        described = self._get(f"deployments/name/{flow}/{name}")
        run = self._post(f"deployments/{described['id']}/create_flow_run", {})
        answer = self._post(f"flow_runs/{run['id']}/set_state", {"state": {"type": "PENDING"}})
        if answer["status"] != "ACCEPT":
            raise RuntimeError(f"{deployment}: {answer}")
        return str(run["id"])

    def runs(self) -> list[dict[str, Any]]:
        """All flow runs, oldest first: deployment's flow, parameters, state, times."""
        return self._post("flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})

    def champion(self, name: str) -> str | None:
        """The version that is champion."""
        version = self.client().get_registered_model(name).aliases.get("champion")
        return None if version is None else str(version)

    def resume(self, flow_run: str, answers: dict[str, Any]) -> None:
        """What the form of a suspended flow run sends."""
        answer = self._post(f"flow_runs/{flow_run}/resume", {"run_input": answers})
        if answer["status"] != "ACCEPT":
            raise RuntimeError(f"{flow_run}: {answer}")

    def jobs(self) -> list[str]:
        """The states of all jobs that the Ray head has had.

        By HTTP: Ray reads its token when it is first imported, which may have been before this site.
        """
        assert self.ray
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
        answer = httpx.get(f"{self.ray.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        return [job["status"] for job in answer.raise_for_status().json()]

    def client(self) -> MlflowClient:
        """MLflow's own client."""
        return MlflowClient(tracking_uri=self.tracking)

    def _get(self, path: str) -> Any:
        return httpx.get(f"{self.api}/{path}", timeout=30).raise_for_status().json()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Prefect's answer; 503 is its busy SQLite database, which its own clients ask again as well."""
        for pause in (0.5, 1, 2, 4, 8, 0):
            answer = httpx.post(f"{self.api}/{path}", json=body, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(pause)
        return answer.raise_for_status().json()

    def _start(self, name: str, command: list[str], ready: Callable[[], bool]) -> None:
        self.services[name] = Service(name, command, self.folder / f"{name}.log", ready, self.environment)

    def _configs(self) -> Path:
        experts = self.folder / "configs" / "pipeline" / "experts"
        experts.mkdir(parents=True)
        (self.folder / "configs" / "pretrain").symlink_to(CONFIGS / "pretrain")
        (experts / "chat.yaml").write_text(EXPERT)
        path = experts.parent / "small.yaml"
        path.write_text(PIPELINE)
        return path


@contextlib.contextmanager
def site(folder: Path, **settings: str) -> Iterator[Site]:
    """A running site, ended with the block; the environment is as before afterwards."""
    running = Site(folder, settings)
    with mock.patch.dict(os.environ):
        try:
            running.start()
            yield running
        finally:
            running.stop()


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for a true value.

    Raises:
        TimeoutError: it did not come.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.25)
    return found
