"""One worker of a real process group, and what it can do.

A fork server imports this module once (12 s) and makes a worker in milliseconds. `jobs` names what to do one
after the other; rank R leaves FOLDER/results-R.json. The group is gloo's, as under Ray Train on CPUs; nothing
of DeepSpeed or of the stage is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed looks for one

import deepspeed  # noqa: F401, here so that the fork server has it
import torch
import torch.distributed as dist

from openba.artifacts import Build
from openba.errors import UserError
from openba.model.parallel import make_part
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainStep
from openba.tokenizer.tokenizer import Tokenizer
from openba.train import stage, stopping
from openba.train.batches import TrainingBatches
from openba.train.checkpoint import MARKER, Checkpoints, reader
from openba.train.engine import Engine
from openba.train.groups import make_groups
from openba.train.hooks import LogHook, MeterHook
from openba.train.objectives import training_samples
from openba.train.replicas import differing
from openba.train.trainer import Trainer


def work(rank: int, world: int, folder: Path, jobs: Mapping[str, Any]) -> None:
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
            begin = time.monotonic()
            module, _, function = job["do"].partition(":")
            results[name] = getattr(import_module(module), function)(build_of(job), **job.get("with", {}))
            if job.get("alone") and "error" in results[name]:
                break  # as a worker does; the others must not wait for it for ever
            dist.barrier()
            print(f"{name} done in {time.monotonic() - begin:.2f} s", flush=True)
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


def build_of(job: Mapping[str, Any]) -> Build:
    """What a step's function is given."""
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


def measured_stage(build: Build) -> dict[str, Any]:
    """The stage, with the seconds that this worker spends on figures and logs beside training."""
    spent = {"metrics": 0.0}

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent["metrics"] += time.perf_counter() - begin

        return call

    training = Trainer(build)
    (log,) = (hook for hook in training.hooks if isinstance(hook, LogHook))
    (meter,) = (hook for hook in training.hooks if isinstance(hook, MeterHook))
    for owner, name in ((log, "after_step"), (meter, "counts"), (training.engine, "row_scores")):
        setattr(owner, name, timed(getattr(owner, name)))
    return {**training.run(), "metrics_seconds": spent["metrics"]}


class BareTrainer:
    """An engine, its batches and steps of them, without a stage around."""

    def __init__(self, build: Build) -> None:
        train, tokenizer = build.recipe.train, Tokenizer.load(build.inputs["tokenizer"])
        torch.manual_seed(train.seed)
        groups = make_groups(build.runtime.tensor_parallel)
        model = make_part(build.recipe.model.architecture(tokenizer.size), groups.tensor)
        samples = training_samples(train, build.inputs["data"], build.recipe.part, tokenizer)
        self.engine = Engine(model, groups, train, build.runtime)
        self.batches = TrainingBatches(samples, train, tokenizer.pad, tokenizer.size, self.engine.padded)
        self.size = build.runtime.train.micro_batch

    def step(self, step: int, lr: float = 1e-3, usable: bool = True) -> tuple[float, bool]:
        """Mean loss of an optimiser step, and whether it was taken."""
        engine, own, applied = self.engine, 0.0, False
        torch.manual_seed(step * engine.data_world + engine.data_rank)
        micro = list(self.batches.micro(step, engine.data_rank, engine.data_world, self.size))
        (targets,) = engine.sum([float(sum(batch.targets for batch in micro))])
        engine.begin(len(micro), torch.tensor(targets, device=engine.device))
        for batch in micro:
            loss = engine.forward(batch)
            own += float(loss.detach())
            engine.backward(loss, usable)
            applied = engine.step(lr)
        return engine.sum([own])[0] / targets, applied

    def losses(self, steps: Iterable[int]) -> list[float]:
        """Of these steps."""
        return [self.step(step)[0] for step in steps]

    def state(self) -> dict[str, Any]:
        """Digest of every whole tensor of the state, Adam's step, and a moving loss scaler's numbers."""
        tensors, numbers = self.engine.share()
        own = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
        everyone: list[dict[str, str]] = [{}] * self.engine.world
        dist.all_gather_object(everyone, own)
        digests = {name: digest for part in everyone for name, digest in part.items()}
        scaler = {"scaler": numbers["scaler"]} if "cur_iter" in numbers["scaler"] else {}
        return {**digests, "adam_step": numbers["adam_step"], **scaler}

    def save(self, folder: Path, step: int) -> None:
        """A committed checkpoint; two are to stay."""
        checkpoints = Checkpoints(folder / "checkpoints", keep=2)
        checkpoints.save(self.engine, step, {})
        checkpoints.settle(self.engine)

    def load(self, folder: Path, step: int) -> None:
        """A checkpoint that is there or will be."""
        saved = folder / "checkpoints" / f"step-{step:06d}"
        while not (saved / MARKER).exists():
            time.sleep(0.05)
        record, read = reader(saved)
        self.engine.restore(read, record)


def save_state(build: Build) -> dict[str, Any]:
    """Three steps with a checkpoint after each, then two more."""
    trainer, losses = BareTrainer(build), []
    for step in range(3):
        losses += trainer.losses([step])
        trainer.save(build.out, step + 1)
    found = trainer.state()
    folders = sorted(path.name for path in (build.out / "checkpoints").iterdir())
    return {"losses": trainer.losses([3, 4]), "state": found, "folders": folders}


def load_state(build: Build) -> dict[str, Any]:
    """Another run's checkpoint of step 3, saved again as it is, then two steps."""
    trainer = BareTrainer(build)
    trainer.load(build.inputs["saved"], 3)
    found = trainer.state()
    trainer.save(build.out, 3)
    return {"state": found, "losses": trainer.losses([3, 4])}


def halves(build: Build, steps: int = 3) -> dict[str, Any]:
    """The state after 2 N steps, straight and stopped after N."""
    straight = BareTrainer(build)
    straight.losses(range(steps))
    straight.save(build.out, steps)
    losses = straight.losses(range(steps, 2 * steps))
    resumed = BareTrainer(build)
    resumed.load(build.out, steps)
    again = resumed.losses(range(steps, 2 * steps))
    return {"states": [straight.state(), resumed.state()], "losses": [losses, again]}


def some_steps(build: Build, steps: int = 20) -> dict[str, Any]:
    """Loss and gradient norm of each step, the state after them, rows of the embedding, odd copies."""
    trainer, rows = BareTrainer(build), []
    for step in range(steps):
        loss, _ = trainer.step(step, lr=2e-4)
        rows.append((loss, trainer.engine.gradient_norm()))
    held = len(trainer.engine.engine.module.shared_embedding.weight)
    odd = differing(trainer.engine)
    return {"rows": rows, "state": trainer.state(), "vocabulary": held, "differing": odd}
