"""One small model on disk and one real server process, which all cases of this folder share."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from openba.model.files import save_model
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

torch.set_num_threads(1)
KEY = "only-for-tests"
# Wide initial weights: the answers of a random model then hang on all it has read.
RECIPE = ModelRecipe(
    d_model=32, num_heads=2, kv_channels=16, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=3,
    init_std=0.3, head_bias=True, tie_embeddings=False, positions=128,
)  # fmt: skip


def write_model(folder: Path, tokenizer: Tokenizer, seed: int) -> Path:
    """A random model whose answers end after some tokens, as different ones do."""
    torch.manual_seed(seed)
    model = OpenBAModel(RECIPE.architecture(tokenizer.size))
    with torch.no_grad():
        model.lm_head.bias[tokenizer.eos] += 1.8
    save_model(folder, model.state_dict(), model.architecture, tokenizer)
    return folder


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("served") / "small", tokenizer, 3)


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> tuple[OpenBAModel, Tokenizer]:
    return load_model(model_folder)


@dataclass
class Server:
    """A running `openba serve`."""

    url: str
    process: subprocess.Popen[str]
    client: httpx.Client


def start(model: str, *options: str, environment: dict[str, str]) -> Server:
    """Start it on a free port of loopback and wait for the line that names its address."""
    command = [sys.executable, "-m", "flows.cli", "serve", model, "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    while not (found := re.search(r" on (http://\S+)", "".join(lines[-1:]))):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)  # it has ended
    client = httpx.Client(base_url=found[1], headers={"authorization": f"Bearer {KEY}"}, timeout=30)
    return Server(found[1], process, client)


@pytest.fixture(scope="session")
def environment(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import os

    home = tmp_path_factory.mktemp("serve-home")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return os.environ | {"OPENBA_HOME": str(home), "OPENBA_API_KEY": KEY, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def server(model_folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    running = start(
        str(model_folder), "--rows", "8", "--queue", "40", "--patience", "1", "--body", "100000",
        environment=environment,
    )  # fmt: skip
    yield running
    running.client.close()
    running.process.terminate()
    assert running.process.wait(20) in (0, -15)
    assert running.process.stdout is not None
    assert running.process.stdout.read() == ""  # nothing that any client did was an error of the server's
