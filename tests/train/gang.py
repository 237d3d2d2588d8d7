"""One worker of a real process group, for the tests: `python gang.py RANK WORLD FOLDER`.

FOLDER/jobs.json names what to do one after the other; rank 0 leaves FOLDER/results.json. The
group is gloo's, as under Ray Train on CPUs; nothing of DeepSpeed or of the stage is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from openba.artifacts import Build
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.model import OpenBAModel
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainStep
from openba.train import stage
from openba.train.batches import TrainingBatches, training_samples
from openba.train.checkpoint import MARKER, Checkpoints, reader
from openba.train.engine import Engine


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    # A file, not a port: none can be taken meanwhile.
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        results[name] = globals()[job["do"]](build_of(job))
        dist.barrier()
        print(f"{name} done", flush=True)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results, default=str))


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
    """Three steps, the second with a limit that only the last rank's loss is above; then two without it."""
    with_skip, kept = _steps(
        build, [(0, 1e4), (1, 0.1 if dist.get_rank() == dist.get_world_size() - 1 else 1e4), (2, 1e4)]
    )
    without, _ = _steps(build, [(0, 1e4), (2, 1e4)])
    return {"applied": kept, "with_skip": with_skip, "without": without}


def save_state(build: Build) -> dict[str, Any]:
    """Two steps and a checkpoint after each, then two more; two checkpoints are to stay."""
    engine, batches = _engine(build)
    checkpoints = Checkpoints(build.out / "checkpoints", keep=2)
    losses = []
    for step in range(5):
        losses += _losses(build, engine, batches, [step])
        if step < 3:
            checkpoints.save(engine, step + 1)
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
    train, losses = build.recipe.train, []
    for step in steps:
        micro = list(batches.micro(step, engine.rank, engine.world, build.runtime.train.micro_batch))
        total = 0.0
        for batch in micro:
            total += engine.backward(batch, 200, train.skip_loss_above)
            engine.step(1e-3)
        losses += engine.sum([total])
    return losses


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
    return engine, TrainingBatches(samples, train, tokenizer.pad)


def _steps(build: Build, steps: list[tuple[int, float]]) -> tuple[list[list[str]], list[bool]]:
    """Per step: the digest of every rank's weights after it; and whether it was applied."""
    engine, batches = _engine(build)
    digests, applied = [_digests(engine)], []
    for step, limit in steps:
        done = False
        for batch in batches.micro(step, engine.rank, engine.world, build.runtime.train.micro_batch):
            engine.backward(batch, 200, limit)
            done = engine.step(1e-3)
        applied.append(done)
        digests.append(_digests(engine))
    return digests, applied


def _digests(engine: Engine) -> list[str]:
    own = hashlib.sha256(
        b"".join(tensor.numpy().tobytes() for tensor in engine.weights().values())
    ).hexdigest()
    everyone: list[str] = [""] * engine.world
    dist.all_gather_object(everyone, own)
    return everyone


if __name__ == "__main__":
    main()
