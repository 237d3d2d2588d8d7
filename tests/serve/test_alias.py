"""`models:/NAME@champion` of a real registry: a new champion answers without a lost request."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import fsspec
import pytest
from mlflow import MlflowClient

from openba.artifacts import fetched
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.home import Home
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.serve.limits import Limits
from openba.tokenizer.tokenizer import Tokenizer
from tasks.serve import Source, serve
from tests.serve.conftest import KEY, start, write_model

NAME = "openba-chat"


def register(client: MlflowClient, folder: Path, at: Path) -> str:
    """A version as `tasks.registry` makes it: a pointer to the files with their digests."""
    files = {
        f"model/{path.name}": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in (folder / "model").iterdir()
    }
    (at / "artifacts").mkdir(parents=True)
    (at / "artifacts" / "pointer.json").write_text(json.dumps({"uri": str(folder), "files": files}))
    version = str(client.create_model_version(NAME, str(at)).version)
    client.set_registered_model_alias(NAME, "champion", version)
    return version


def first_champion(uri: str, root: Path, tokenizer: Tokenizer) -> MlflowClient:
    """Models of seeds 3 and 4 below `root`, the first of them champion."""
    client = MlflowClient(uri, uri)
    client.create_registered_model(NAME)
    for seed in (3, 4):
        write_model(root / str(seed) / "model", tokenizer, seed)
    register(client, root / "3", root / "pointer3")
    return client


def test_a_new_champion_answers_and_no_request_is_lost(
    tokenizer: Tokenizer, tmp_path: Path, environment: dict[str, str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = first_champion(uri, tmp_path, tokenizer)
    running = start(
        f"models:/{NAME}@champion", "--poll", "0.2", environment=environment | {"MLFLOW_TRACKING_URI": uri}
    )
    answers: list[tuple[int, str, str]] = []
    ending = threading.Event()

    def ask_on() -> None:
        while not ending.is_set():
            got = running.client.post("/v1/completions", json={"prompt": "房间 1", "max_tokens": 40})
            body = got.json()
            answers.append((got.status_code, body["system_fingerprint"], body["choices"][0]["text"]))

    def until(version: str) -> None:
        for _ in range(400):
            if running.client.get("/health").json()["version"] == version:
                return
            time.sleep(0.05)
        raise AssertionError(running.client.get("/health").json())

    askers = [threading.Thread(target=ask_on) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        until("v1")
        register(client, tmp_path / "4", tmp_path / "pointer4")
        until("v2")
        time.sleep(0.3)
        # One that cannot be loaded is told and changes nothing.
        (tmp_path / "5").mkdir()
        (tmp_path / "5" / "model").symlink_to(tmp_path / "4" / "model")
        register(client, tmp_path / "5", tmp_path / "pointer5")
        (tmp_path / "5" / "model").unlink()
        for _ in range(200):
            if trouble := running.client.get("/health").json()["reload_error"]:
                break
            time.sleep(0.05)
        assert "missing" in trouble
        until("v2")
    finally:
        ending.set()
        for asker in askers:
            asker.join()
        running.client.close()
        running.process.terminate()
        running.process.wait(20)
    assert {status for status, *_ in answers} == {200}
    assert {version for _, version, _ in answers} == {"v1", "v2"}
    assert len({text for _, _, text in answers}) == 2
    assert len({(version, text) for _, version, text in answers}) == 2  # each version its own answer


def test_a_model_of_a_remote_store_needs_no_copy_once_it_is_loaded(model_folder: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(f"{model_folder}/", "/served/model/", recursive=True)
    files = {
        f"model/{path.name}": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in model_folder.iterdir()
    }
    with fetched("memory://served", files) as folder:
        model, tokenizer = load_model(folder / "model")
    assert not folder.exists()
    sources = [encode_input(tokenizer, "房间很干净", [], 128)]
    own = load_model(model_folder)
    assert generate(model, tokenizer, sources, 20) == generate(*own, sources, 20)


def test_what_cannot_be_served_is_one_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    with pytest.raises(UserError, match="not a model's folder"):
        Source(str(tmp_path), home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    with pytest.raises(UserError, match=r"models:/nobody@champion: no such model or alias"):
        Source("models:/nobody@champion", home).now()
    monkeypatch.delenv("OPENBA_API_KEY", raising=False)
    options = {"port": 0, "device": "cpu", "poll_seconds": 1.0}
    with pytest.raises(UserError, match="set OPENBA_API_KEY"):
        serve(str(model_folder), home, Limits(), host="0.0.0.0", **options)  # type: ignore[arg-type]
    monkeypatch.setenv("OPENBA_API_KEY", KEY)
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 --port 0"):
        serve(str(model_folder), home, Limits(), host="192.0.2.1", **options)  # type: ignore[arg-type]
