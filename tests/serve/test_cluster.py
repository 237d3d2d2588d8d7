"""Two replicas on a real Ray Serve, deployed by the command over Ray's dashboard."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from mlflow import MlflowClient

from openba.config import CONFIGS, load
from openba.home import Home
from openba.recipes.runtime import PipelineRuntime
from openba.tokenizer.tokenizer import Tokenizer
from tasks.services import RayHead, free_port
from tests.serve.conftest import KEY
from tests.serve.test_alias import NAME, first_champion, register
from tests.serve.test_server import Loaded, alone, events

pytest.importorskip("grpc_reflection", reason="Ray Serve needs the packages of requirements.lock")
BODY = {"prompt": "房间 1", "max_tokens": 40}


class Cluster:
    """A Ray head with Serve's dashboard, and the `openba serve --cluster` command."""

    def __init__(self, model: str, environment: dict[str, str]) -> None:
        self.model, self.port = model, free_port()
        # The head's folder holds Unix sockets, so it is short; its processes have this one's environment.
        self.folder = tempfile.TemporaryDirectory(prefix="oba")
        runtime = load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime)
        with mock.patch.dict(os.environ, environment):
            self.head = RayHead(Home(Path(self.folder.name)), runtime)
            self.head.wait()
            self.environment = dict(os.environ) | {"RAY_ADDRESS": self.head.dashboard}
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"authorization": f"Bearer {KEY}"}, timeout=60
        )

    def serve(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", "serve", self.model, "--cluster", *options]
        return subprocess.run(
            [*command, "--port", str(self.port), "--poll", "0.2", "--rows", "4", "--queue", "4"],
            env=self.environment, capture_output=True, text=True,
        )  # fmt: skip

    def stop(self) -> None:
        self.client.close()
        self.head.stop()
        self.folder.cleanup()


@pytest.fixture(scope="module")
def registered(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MlflowClient]:
    root = tmp_path_factory.mktemp("cluster")
    return root, first_champion(f"sqlite:///{root / 'mlflow.db'}", root, tokenizer)


@pytest.fixture(scope="module")
def cluster(registered: tuple[Path, MlflowClient], environment: dict[str, str]) -> Iterator[Cluster]:
    root, _ = registered
    found = Cluster(
        f"models:/{NAME}@champion",
        environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"},
    )
    try:
        deployed = found.serve("--replicas", "2")
        assert deployed.returncode == 0, deployed.stderr + deployed.stdout
        yield found
    finally:
        found.stop()


def test_answers_and_refusals_are_those_of_the_plain_server(cluster: Cluster, loaded: Loaded) -> None:
    answer = cluster.client.post("/v1/completions", json=BODY)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == alone(loaded, "房间 1", 40)
    pieces = events(cluster.client, "/v1/completions", BODY | {"stream": True})
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert text == answer.json()["choices"][0]["text"]
    assert len(pieces) > 2
    assert cluster.client.get("/health").json()["status"] == "ok"
    assert "<html" in cluster.client.get("/").text
    assert httpx.post(f"{cluster.client.base_url}/v1/completions", json=BODY).status_code == 401
    assert cluster.client.post("/v1/completions", json=BODY | {"n": 0}).status_code == 400
    large = BODY | {"prompt": "x" * 2**21}
    assert cluster.client.post("/v1/completions", json=large).status_code == 413
    assert cluster.client.get("/health", headers={"host": "elsewhere.example"}).status_code == 400


def test_replicas_share_the_requests_and_follow_the_alias(
    cluster: Cluster, registered: tuple[Path, MlflowClient]
) -> None:
    """Both replicas answer with the new champion after a while, and no request is lost meanwhile."""
    root, client = registered
    register(client, root / "4", root / "pointer4")
    versions: list[str] = []
    end = time.monotonic() + 60
    while versions[-11:] != ["v2"] * 11 and time.monotonic() < end:
        answer = cluster.client.post("/v1/completions", json=BODY)
        assert answer.status_code == 200, answer.text
        versions.append(answer.json()["system_fingerprint"])
    assert versions[-11:] == ["v2"] * 11


def test_a_second_command_replaces_and_ends_it(cluster: Cluster) -> None:
    elsewhere: Any = cluster.port
    cluster.port = free_port()
    refused = cluster.serve()
    cluster.port = elsewhere
    assert refused.returncode == 2
    assert f"listens on 127.0.0.1:{elsewhere} already" in refused.stderr
    ended = cluster.serve("--replicas", "0")
    assert ended.returncode == 0, ended.stderr
    assert cluster.client.post("/v1/completions", json=BODY).status_code in (404, 503)
