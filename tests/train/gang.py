"""One worker of a real process group, for the tests. A fork server imports this module once (12 s) and makes
a worker in milliseconds, so a case may kill its group.

`jobs` names what to do one after the other; rank R leaves FOLDER/results-R.json. The group is gloo's, as
under Ray Train on CPUs; nothing of DeepSpeed or of the stage is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed looks for one

import deepspeed  # noqa: F401, here so that the fork server has it
import torch
import torch.distributed as dist

from openba.artifacts import Build
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.model import OpenBAModel
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainStep
from openba.train import stage, stopping
from openba.train.batches import TrainingBatches, training_samples
from openba.train.checkpoint import MARKER, Checkpoints, reader
from openba.train.engine import Engine
from tests.train import faults


def work(rank: int, world: int, folder: Path, jobs: dict[str, Any]) -> None:
    """A worker's life."""
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    # A file, not a port: none can be taken meanwhile.
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    code = 1
    try:
        for name, job in jobs.items():
            do = faults.run if job["do"] == "break" else globals()[job["do"]]
            results[name] = do(build_of(job), **job.get("with", {}))
            if job.get("alone") and "error" in results[name]:
                break  # as a worker does; the others must not wait for it for ever
            dist.barrier()
            print(f"{name} done", flush=True)
        else:
            code = 0
    except stopping.Preempted:
        code = stopping.EXIT_PREEMPTED
    except BaseException:
        traceback.print_exc()
    (folder / f"results-{rank}.json").write_text(json.dumps(results, default=str))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of gloo and DeepSpeed need no farewell


def build_of(job: dict[str, Any]) -> Build:
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    recipe = TrainStep.model_validate(job["recipe"])
    inputs = {key: Path(path) for key, path in job["inputs"].items()}
    return Build(out, recipe, inputs, PipelineRuntime.model_validate(job["runtime"]))


def run_stage(build: Build) -> dict[str, Any]:
    """The stage as the pipeline runs it; its facts, or the line a user would read."""
    try:
        return stage.build(build)
    except UserError as error:
        return {"error": str(error)}


def skip_a_step(build: Build) -> dict[str, Any]:
    """Three steps, the second poisoned; then two without it."""
    with_skip, kept = _steps(build, [(0, True), (1, False), (2, True)])
    without, _ = _steps(build, [(0, True), (2, True)])
    return {"applied": kept, "with_skip": with_skip, "without": without}


def save_state(build: Build) -> dict[str, Any]:
    """Two steps and a checkpoint after each, then two more; two checkpoints are to stay."""
    engine, batches = _engine(build)
    checkpoints = Checkpoints(build.out / "checkpoints", keep=2)
    losses = []
    for step in range(5):
        losses += _losses(build, engine, batches, [step])
        if step < 3:
            checkpoints.save(engine, step + 1, {})
            checkpoints.settle(engine)
        if step == 2:
            state = _state(engine)
    return {
        "losses": losses[3:],
        "state": state,
        "folders": sorted(p.name for p in checkpoints.folder.iterdir()),
    }


def load_state(build: Build) -> dict[str, Any]:
    """The last of `save_state`'s checkpoints, perhaps still to come, then two steps."""
    engine, batches = _engine(build)
    folder = build.inputs["saved"] / "checkpoints" / "step-000003"
    while not (folder / MARKER).exists():
        time.sleep(0.05)
    record, read = reader(folder)
    engine.restore(read, record)
    return {"state": _state(engine), "losses": _losses(build, engine, batches, [3, 4])}


def _losses(build: Build, engine: Engine, batches: TrainingBatches, steps: list[int]) -> list[float]:
    losses = []
    for step in steps:
        own, _ = _step(build, engine, batches, step)
        losses += engine.sum([own])
    return losses


def _step(
    build: Build, engine: Engine, batches: TrainingBatches, step: int, usable: bool = True
) -> tuple[float, bool]:
    own, applied = 0.0, False
    for batch in batches.micro(step, engine.rank, engine.world, build.runtime.train.micro_batch):
        loss = engine.forward(batch)
        own += float(loss.detach())
        engine.backward(loss, 200, usable)
        applied = engine.step(1e-3)
    return own, applied


def _state(engine: Engine) -> dict[str, str]:
    """Digest of every whole tensor of the training state, and the scalars."""
    tensors, numbers = engine.share()
    own = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
    everyone: list[dict[str, str]] = [{}] * engine.world
    dist.all_gather_object(everyone, own)
    return {name: digest for part in everyone for name, digest in part.items()} | {
        "adam": numbers["adam_step"]
    }


def _engine(build: Build) -> tuple[Engine, TrainingBatches]:
    train, tokenizer = build.recipe.train, Tokenizer.load(build.inputs["tokenizer"])
    torch.manual_seed(train.seed)
    model = OpenBAModel(build.recipe.model.architecture(tokenizer.size))
    samples = training_samples(train, build.inputs["data"], "stage1", tokenizer)
    engine = Engine(model, train, build.runtime.train, build.runtime.device)
    return engine, TrainingBatches(samples, train, tokenizer.pad, tokenizer.size)


def _steps(build: Build, steps: list[tuple[int, bool]]) -> tuple[list[list[str]], list[bool]]:
    """Per step: the digest of every rank's weights after it; and whether it was applied."""
    engine, batches = _engine(build)
    digests, applied = [_digests(engine)], []
    for step, usable in steps:
        applied.append(_step(build, engine, batches, step, usable)[1])
        digests.append(_digests(engine))
    return digests, applied


def _digests(engine: Engine) -> list[str]:
    own = hashlib.sha256(
        b"".join(tensor.numpy().tobytes() for tensor in engine.weights().values())
    ).hexdigest()
    everyone: list[str] = [""] * engine.world
    dist.all_gather_object(everyone, own)
    return everyone
