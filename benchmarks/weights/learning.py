"""What an adapter learns of what full fine-tuning learns, and whether its base stays and it resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from openba import durable
from openba.artifacts import Step, Store
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.home import Home
from tests.harness import worker_groups

EXPERT = "tool"
RANK = 3
"""11,008 numbers a rank in this shape: 1.6 % of the model."""
ADAPTER = [
    f"experts.{EXPERT}.train.adapter={{kind: rslora, rank: {RANK}}}",
    f"experts.{EXPERT}.train.optim.lr=1e-2",
]
ONE_WORKER = ["runtime.train.expert_workers=1"]


def figures(root: Path) -> Iterator[Figure]:
    """Train one expert both ways, the adapter twice: straight, and stopped after a step."""
    root.mkdir(parents=True)
    store = Home.from_environment().store
    full_step = Pipeline(find_pipeline("tiny"), ONE_WORKER).step(EXPERT)
    adapter_step = Pipeline(find_pipeline("tiny"), [*ONE_WORKER, *ADAPTER]).step(EXPERT)
    base = built_output(store, full_step.inputs["start"]) / "model" / "model.safetensors"
    base_digest = durable.sha256(base)
    jobs = {
        "full": worker_job(root / "full", full_step, store, "run_stage"),
        "adapter": worker_job(root / "adapter", adapter_step, store, "run_stage"),
        "stopped": worker_job(root / "stopped", adapter_step, store, "tests.train.group_jobs:stopped_stage"),
    }
    facts = worker_groups.results(root, {"one": (1, jobs)})
    gains = {name: _gain(facts[name]) for name in ("full", "adapter")}
    trained_share = facts["adapter"]["trained_parameters"] / facts["adapter"]["parameters"]
    share = gains["adapter"] / gains["full"]
    comparison = f"held-out gain in nats: full {gains['full']:.3f}, adapter {gains['adapter']:.3f}"
    yield Figure("weights/adapter_trained_share", 100 * trained_share, "%", 2.0)
    yield Figure("weights/adapter_gain_of_full", 100 * share, "%", 90.0, "higher", comparison, share)
    changed_bytes = float(durable.sha256(base) != base_digest)
    yield Figure("weights/base_changed_by_adapter", changed_bytes, "", 0.0)
    adapters = [root / name / "model" / "adapter_model.safetensors" for name in ("adapter", "stopped")]
    differs = float(adapters[0].read_bytes() != adapters[1].read_bytes())
    yield Figure("weights/adapter_resume_differs", differs, "", 0.0)
    yield Figure("weights/adapter_size", adapters[0].stat().st_size / 1e6, "MB")


# `Any`: facts of workers, which are JSON.
def _gain(facts: dict[str, Any]) -> float:
    rows = facts["heldout"]
    return rows[0]["loss"] - rows[-1]["loss"]


# `Any`: a job's settings, which recipes validate.
def worker_job(out: Path, step: Step, store: Store, function: str) -> dict[str, Any]:
    """Return a job of one worker for a training of the pipeline, with its inputs from the store."""
    inputs = {name: str(built_output(store, parent)) for name, parent in step.inputs.items()}
    job = worker_groups.job(
        out, inputs, function if ":" in function else f"{worker_groups.WORKER}:{function}"
    )
    job["recipe"] = step.recipe.model_dump(mode="json")
    job["runtime"]["train"] |= {"workers": 1, "micro_batch": 16}
    return job


def built_output(store: Store, step: Step) -> Path:
    """Return the folder of a step's output.

    Raises:
        UserError: it is not built.
    """
    if store.manifest(step) is None:
        message = f"not in the store of OPENBA_HOME; `openba run tiny --until {EXPERT}` builds it"
        raise UserError(f"{step.key}: {message}")
    return store.path(step)
