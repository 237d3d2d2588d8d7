"""Peak memory of a training with an adapter against one of all weights, by the kernel's count of a worker."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from benchmarks.figure import Figure
from benchmarks.weights.learning import EXPERT, ONE_WORKER, built_output, worker_job
from openba.artifacts import Build
from openba.graph import Pipeline, find_pipeline
from openba.home import Home
from openba.model.files import save_model
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.loop import training_steps
from openba.train.trainer import Trainer
from tests.harness import worker_groups

WIDE = {
    "d_model": 512, "num_heads": 8, "kv_channels": 64, "ffn": 2048, "ffn_multiple": 256,
    "encoder_layers": 2, "decoder_layers": 6,
}  # fmt: skip
_STEPS = 2


def figures(root: Path) -> Iterator[Figure]:
    """Train two steps of a wide model both ways, each in a process of its own."""
    root.mkdir(parents=True)
    store = Home.from_environment().store
    step = Pipeline(find_pipeline("tiny"), ONE_WORKER).step(EXPERT)
    tokenizer = Tokenizer.load(built_output(store, step.inputs["tokenizer"]))
    torch.manual_seed(0)
    model = OpenBAModel(ModelRecipe.model_validate(WIDE).architecture(tokenizer.size))
    save_model(root / "start" / "model", model.state_dict(), model.architecture, tokenizer)
    groups = {}
    for name, adapter in (("full", None), ("adapter", {"kind": "lora", "rank": 16})):
        job = worker_job(root / name, step, store, "benchmarks.weights.memory:peak_bytes")
        job["inputs"]["start"] = str(root / "start")
        job["recipe"]["model"] = WIDE
        job["recipe"]["train"] |= {"budget": f"{_STEPS} steps"} | ({"adapter": adapter} if adapter else {})
        job["recipe"]["train"]["optim"]["warmup"] = 0
        job["runtime"]["train"]["micro_batch"] = 4
        groups[name] = (1, {name: job})
    peaks = worker_groups.results(root, groups)
    share = peaks["adapter"] / peaks["full"]
    comparison = f"full {peaks['full'] / 1e6:.0f} MB, adapter {peaks['adapter'] / 1e6:.0f} MB"
    yield Figure("weights/adapter_memory_of_full", 100 * share, "%", 45.0, peer=comparison, ratio=share)


def peak_bytes(build: Build) -> int:
    """Return what a worker has held at most above what it held before: model, engine, steps."""
    bytes_before = psutil.Process().memory_info().rss
    trainer = Trainer(build)
    steps = training_steps(
        engine=trainer.engine, batches=trainer.batches, guard=trainer.guard, hooks=(), start_step=0
    )
    for _ in steps:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - bytes_before
