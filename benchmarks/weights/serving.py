"""Five adapters over one base in one engine, against five engines of one merged model each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.figure import Figure
from benchmarks.timing import require_quiet
from benchmarks.weights import serving_child
from benchmarks.weights.engines import WIDE
from benchmarks.weights.fixture import write_fixture
from openba.model.adapter import AdapterWriter, add_adapter, trained_state
from openba.model.export import export
from openba.model.files import save_model
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.adapter import AdapterRecipe
from openba.recipes.model import ModelRecipe

ADAPTERS = 5
CLIENTS = 64
"""Requests at a time, over all adapters."""


def figures(root: Path) -> Iterator[Figure]:
    """Answer the same requests both ways; each way has both cores."""
    tokenizer = write_fixture(root / "fixture")
    torch.manual_seed(0)
    model = OpenBAModel(ModelRecipe.model_validate(WIDE).architecture(tokenizer.size))
    base = root / "base"
    save_model(base, model.state_dict(), model.architecture, tokenizer)
    recipe = AdapterRecipe(kind="lora", rank=16)
    for number in range(ADAPTERS):
        adapted, _ = load_model(base)
        torch.manual_seed(number)
        add_adapter(adapted, recipe)
        for name, parameter in trained_state(adapted).items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.1)
        AdapterWriter(adapted, recipe, tokenizer, base).write(
            root / f"adapter-{number}", trained_state(adapted)
        )
        export(root / f"adapter-{number}", root / f"merged-{number}", "safetensors")
    adapters = [root / f"adapter-{number}" for number in range(ADAPTERS)]
    together = [[str(CLIENTS), "2", str(base), *map(str, adapters)]]
    share = -(-CLIENTS // ADAPTERS)
    apart = [[str(share), "1", str(root / f"merged-{number}")] for number in range(ADAPTERS)]
    require_quiet()
    seconds, answers = _answer(together)
    seconds_apart, answers_apart = _answer(apart)
    # The control: what of the difference is the adapters' own work.
    seconds_base, _ = _answer([[str(CLIENTS), "2", str(base)]])
    mixed = sum(
        shared != merged
        for number in range(ADAPTERS)
        for shared, merged in zip(answers[number::ADAPTERS], answers_apart[number * share :], strict=False)
    )
    rate = CLIENTS / seconds
    rate_apart = ADAPTERS * share / seconds_apart
    comparison = f"five engines of one merged model each: {rate_apart:.2f} answers/s"
    yield Figure("weights/adapters_answers_mixed", mixed, "", 0.0)
    yield Figure(
        "weights/adapters_over_one_base", rate, "answers/s", None, "higher", comparison, rate / rate_apart
    )
    yield Figure("weights/adapters_against_five_engines", rate / rate_apart, "x", 2.0, "higher", comparison)
    base_alone = f"the base without adapters, one engine: {CLIENTS / seconds_base:.2f} answers/s"
    yield Figure("weights/adapters_against_base", seconds_base / seconds, "x", None, "higher", base_alone)


def _answer(commands: list[list[str]]) -> tuple[float, list[str]]:
    """Start a process for each command, let all begin at once; returns seconds and the answers in order."""
    children = [
        subprocess.Popen(
            [sys.executable, serving_child.__file__, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [line for child in children for line in child.stdout or ()]
    seconds = time.perf_counter() - began
    for child in children:
        child.wait()
    return seconds, answers
