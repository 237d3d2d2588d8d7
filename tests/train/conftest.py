"""Runs of real worker groups (`tests.harness.worker_groups`): made once, the tests look at what they left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import instruct, labelled
from openba.recipes.data import InstructRecipe, TaskRecipe, TaskStep
from openba.train.checkpoint import MARKER
from openba.train.log import read_rows
from tests.harness import worker_groups
from tests.harness.worker_groups import WorkerGroup

torch.set_num_threads(1)

STEPS = 10
"""Of the runs that are interrupted; the group is killed after six."""


@dataclass
class Runs:
    """What the launches left."""

    root: Path
    inputs: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    def job(self, name: str, do: str = "run_stage", **change: Any) -> dict[str, Any]:
        """A tiny Stage I but for what is given."""
        own = (
            "stopped_stage", "skip_a_step", "metered_stage", "in_fp16", "reduced", "gradient_bytes",
            "muon_updates",
        )  # fmt: skip
        module = "tests.train.group_jobs" if do in own else worker_groups.WORKER
        inputs = {**self.inputs, **change.pop("inputs", {})}
        return worker_groups.job(self.root / name, inputs, do if ":" in do else f"{module}:{do}", **change)

    def interrupted(self, name: str, **options: Any) -> dict[str, Any]:
        """A run with dropout and a checkpoint every second step."""
        return self.job(
            name,
            model={"dropout": 0.1},
            runtime={"checkpoint_every": 2, "keep_checkpoints": 3, **options.pop("runtime", {})},
            **{"budget": f"{STEPS} steps", "keep_every": "4 steps", **options},
        )

    def rows(self, name: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return read_rows(self.root / name / file)

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in self.rows(name)]

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_file(self.root / name / "model" / "model.safetensors")

    def model_bytes(self, name: str) -> bytes:
        return (self.root / name / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    """Its imports go on while the first tests run."""
    worker_groups.start_server("tests.train.group_jobs", "tests.train.faults")


def pairs(root: Path, tokenizer_folder: Path) -> Path:
    """Instruction pairs of a shipped task, as an instruct step leaves them."""
    recipe = load(CONFIGS / "task" / "bbc-topic.yaml", TaskRecipe, ["source.limit=60"])
    for folder in ("task", "pairs"):
        (root / folder).mkdir()
    labelled.build(Build(root / "task", TaskStep(name="bbc-topic", task=recipe), {}))
    mix = InstructRecipe(tasks={"bbc-topic": "en"}, encoder_length=192, decoder_length=32)
    instruct.build(
        Build(root / "pairs", mix, {"tokenizer": tokenizer_folder, "task-bbc-topic": root / "task"})
    )
    return root / "pairs"


@pytest.fixture(scope="session")
def runs(tokenizer_folder: Path, mixture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs: a group killed at its third checkpoint, then one of two workers and one alone."""
    root = tmp_path_factory.mktemp("runs")
    runs = Runs(root, {"tokenizer": str(tokenizer_folder), "data": str(mixture_folder)})
    killed = WorkerGroup(root / "worker-group-killed", 2, {"killed": runs.interrupted("killed")})
    killed.kill_at(root / "killed" / "checkpoints" / "step-000006" / MARKER)
    assert not (root / "killed" / "model").exists()
    for copy in ("damaged", "other-world"):
        shutil.copytree(root / "killed", root / copy)
    damage(root / "damaged" / "checkpoints")

    def saved(name: str) -> dict[str, str]:
        return {"saved": str(root / name)}

    start = {"data": str(pairs(root, tokenizer_folder)), "start": str(root / "reference")}
    two = {
        "saved": runs.job("saved", do="save_state"),
        "saved-zero3": runs.job("saved-zero3", do="save_state", runtime={"zero_stage": 3}),
        "saved-bf16": runs.job("saved-bf16", do="save_state", runtime={"zero_stage": 2}, precision="bf16"),
        "saved-tp2": runs.job("saved-tp2", do="save_state", tensor_parallel=2, runtime={"zero_stage": 2}),
        "reference": runs.job("reference"),
        "padded": runs.job("padded", runtime={"batches": "padded", "micro_batch": 2}),
        "zero3": runs.job(
            "zero3",
            runtime={"zero_stage": 3, "micro_batch": 46},
            batch=6,
            heldout_batches=99,
            budget="2 steps",
        ),
        "undisturbed": runs.interrupted("undisturbed", runtime={"profile_after": 4}),
        "deterministic": runs.interrupted("deterministic", runtime={"deterministic": True}),
        "resumed": runs.interrupted("killed"),
        "damaged": runs.interrupted("damaged"),
        "all-skipped": runs.job("all-skipped", skip_loss_above=1.0, precision="bf16", budget="2 steps"),
        "extremes": extremes(runs),
        "skip": runs.job("skip", do="skip_a_step"),
        "skip-zero2": runs.job("skip-zero2", do="skip_a_step", runtime={"zero_stage": 2, "micro_batch": 2}),
        **{
            f"reduced-zero{stage}": runs.job(
                f"reduced-zero{stage}", do="reduced", precision="bf16", runtime={"zero_stage": stage}
            )
            for stage in (1, 2, 3)
        },
        "saved-muon": runs.job("saved-muon", do="save_state", **MUON),
        "muon": {**runs.job("muon", do="halves", model={"dropout": 0.1}, **MUON), "with": {"steps": 1}},
        "muon-updates": runs.job("muon-updates", do="muon_updates", **MUON),
        "muon-learns": runs.job("muon-learns", budget="10 steps", **MUON),
        "gradient-bytes": runs.job("gradient-bytes", do="gradient_bytes", precision="bf16"),
        "prefix-lm": runs.job("prefix-lm", data={"objective": "prefix_lm", "length": 60}),
        "spans": runs.job(
            "spans",
            data={"objective": "span_corruption", "length": 60},
            optim={"lr": 1e-3, "schedule": "wsd", "decay": "2 steps"},
        ),
        "started": runs.job(
            "started",
            data={"objective": "instruction"},
            inputs=start,
            optim={"lr": 0.0},
            runtime={"log_every": 3},
        ),
        "uneven": runs.job("uneven", batch=5),
        **adapted(runs, start),
        "metered": runs.job("metered", do="metered_stage", budget="2 steps"),
        **parallel(runs),
        **{name: halves(runs, name, *kind) for name, kind in HALVES.items()},
        "tp2-of-zero1": runs.job("tp2-of-zero1", do="load_state", inputs=saved("saved"), tensor_parallel=2),
        "tp2": runs.interrupted("tp2", tensor_parallel=2, budget="3 steps"),
        "tp2-stopped": runs.interrupted(
            "tp2-stopped", do="stopped_stage", tensor_parallel=2, budget="3 steps"
        ),
        "tp2-uneven": runs.job(
            "tp2-uneven", do="run_stage", model={"num_heads": 3}, tensor_parallel=2, budget="1 steps"
        ),
        "zero3-of-zero1": runs.job(
            "zero3-of-zero1", do="load_state", inputs=saved("saved"), runtime={"zero_stage": 3}
        ),
        "two-of-one": runs.job("two-of-one", do="load_state", inputs=saved("one-of-two")),
    }
    one = {
        "one": runs.job("one", runtime={"workers": 1}),
        "one-no-filler": runs.job("one-no-filler", runtime={"workers": 1, "micro_batch": 8}),
        "other-world": runs.interrupted("other-world"),
        "alone-twenty": twenty(runs, "alone-twenty"),
        "alone-four": twenty(runs, "alone-four", runtime={"micro_batch": 2}),
        "alone-bf16": twenty(runs, "alone-bf16", steps=2, precision="bf16"),
        "one-of-tp2": runs.job("one-of-tp2", do="load_state", inputs=saved("saved-tp2")),
        "one-of-two": runs.job("one-of-two", do="load_state", inputs=saved("saved")),
        "one-of-zero3": runs.job("one-of-zero3", do="load_state", inputs=saved("saved-zero3")),
        "one-of-muon": runs.job("one-of-muon", do="load_state", inputs=saved("saved-muon"), **MUON),
        "one-of-bf16": runs.job("one-of-bf16", do="load_state", inputs=saved("saved-bf16"), precision="bf16"),
        "no-heldout": runs.job(
            "no-heldout",
            model={"positions": 3100},
            data={"objective": "prefix", "length": 6001},
            encoder_length=3100,
            decoder_length=3100,
        ),
    }
    four = {
        "tp2-dp2": twenty(runs, "tp2-dp2", tensor_parallel=2, runtime={"zero_stage": 2, "micro_batch": 4}),
        "reduced-tp2": runs.job("reduced-tp2", do="reduced", precision="bf16", tensor_parallel=2),
        "many-fillers": runs.job("many-fillers", runtime={"workers": 4, "micro_batch": 1}),
    }
    runs.facts = worker_groups.results(root, {"two": (2, two), "one": (1, one), "four": (4, four)})
    for copy in ("again", "again-damaged"):
        shutil.copytree(root / "undisturbed", root / copy)
    weights = root / "again-damaged" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    again = {name: runs.interrupted(name) for name in ("again", "again-damaged")}
    runs.facts |= worker_groups.results(root, {"again": (2, again)})
    return runs


ADAPTED: dict[str, dict[str, Any]] = {
    "lora": {"precision": "fp32"},
    "dora-zero2-bf16": {"precision": "bf16", "runtime": {"zero_stage": 2}},
    "rslora-zero3": {"precision": "fp32", "runtime": {"zero_stage": 3}},
}


def adapted(runs: Runs, start: dict[str, str]) -> dict[str, Any]:
    """Adapters on the reference's weights: straight, and stopped after a step and gone on."""
    return {
        f"{name}{ending}": runs.job(
            f"{name}{ending}",
            do=do,
            data={"objective": "instruction"},
            inputs=start,
            adapter={"kind": name.partition("-")[0], "rank": 4, "dropout": 0.1},
            keep_every="2 steps",
            **options,
        )
        for name, options in ADAPTED.items()
        for ending, do in (("", "run_stage"), ("-stopped", "stopped_stage"))
    }


def extremes(runs: Runs) -> dict[str, Any]:
    """A run with the least and the greatest values that the types of its numbers allow."""
    never = 10**12
    return runs.job(
        "extremes",
        optim={
            "lr": 1e-3, "min_lr": 0, "warmup": 4, "clip": 0, "weight_decay": 0, "beta1": 0, "beta2": 0,
            "decay": never,
        },
        skip_loss_above=1e300,
        skip_loss_sigma=1e300,
        heldout_batches=2**24,
        evaluate_every=never,
        keep_every=never,
        seed=2**31 - 1,
        runtime={
            "micro_batch": 2**24, "checkpoint_every": never, "compare_every": never, "log_every": never,
            "profile_after": never, "keep_checkpoints": 2**24, "stall_seconds": 1e7, "max_failures": 0,
        },
    )  # fmt: skip


def twenty(runs: Runs, name: str, steps: int = 20, **options: Any) -> dict[str, Any]:
    """Twenty steps in one micro-batch a worker, but for what is given."""
    job = runs.job(name, **{"do": "some_steps", "runtime": {"micro_batch": 8}, **options})
    return {**job, "with": {"steps": steps}}


HALVES = {
    "zero1-bf16": (1, "bf16"),
    "zero2-fp16": (2, "fp16"),
    "zero2-fp32": (2, "fp32"),
    "zero3-bf16": (3, "bf16"),
}
"""ZeRO stages and precisions that are stopped and resumed between two steps; others: `interrupted`."""


MUON: dict[str, Any] = {"precision": "bf16", "optim": {"lr": 1e-3, "muon": {"lr": 0.02}}}
FP16: dict[str, dict[str, Any]] = {"dp2-fp16": {}, "tp2-fp16": {"tensor_parallel": 2}}


def halves(runs: Runs, name: str, zero: int, precision: str) -> dict[str, Any]:
    """Two steps, straight and in halves, with dropout."""
    fp16 = precision == "fp16"  # stopped while it looks for its scale
    job = runs.job(
        name,
        do="in_fp16" if fp16 else "halves",
        model={"dropout": 0.1},
        precision=precision,
        runtime={"zero_stage": zero},
    )
    return {**job, "with": {"function": "halves", "steps": 9} if fp16 else {"steps": 1}}


def parallel(runs: Runs) -> dict[str, Any]:
    """Twenty steps of two workers, in every way that they can share them."""
    return {
        "dp2": twenty(runs, "dp2"),
        "dp2-zero2": twenty(runs, "dp2-zero2", runtime={"micro_batch": 1, "zero_stage": 2}),
        "dp2-zero3": twenty(runs, "dp2-zero3", runtime={"micro_batch": 4, "zero_stage": 3}),
        "tp2-zero1": twenty(runs, "tp2-zero1", tensor_parallel=2),
        "tp2-bf16": twenty(runs, "tp2-bf16", steps=2, tensor_parallel=2, precision="bf16"),
        **{
            name: {
                **twenty(runs, name, do="in_fp16", precision="fp16", **shared),
                "with": {"function": "some_steps", "steps": 22},
            }
            for name, shared in FP16.items()
        },
        "tp2-zero2": twenty(
            runs,
            "tp2-zero2",
            tensor_parallel=2,
            runtime={"micro_batch": 2, "zero_stage": 2, "recompute": "selective"},
        ),
    }


def damage(checkpoints: Path) -> None:
    """One bit of the newest checkpoint turns round, the one before it loses its marker."""
    older, newest = [folder for folder in sorted(checkpoints.iterdir()) if (folder / MARKER).exists()][-2:]
    (older / MARKER).unlink()
    shard = newest / "rank-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
