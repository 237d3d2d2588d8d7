"""Sharing and resuming of a training in all ways, each against the plainest: errors, in bits where exact.

Tiny models in groups of one, two and four processes over gloo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from tests.harness import worker_groups

# `Any`: settings of recipes, which validate them, and results of workers, which differ by job.
Settings = dict[str, Any]
_HALVES = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]
"""ZeRO stage and tensor-parallel ranks of two workers."""
_AGAINST_ONE: dict[str, Settings] = {
    "dp2_zero1": {},
    "dp2_zero2_accumulation4": {"runtime": {"micro_batch": 1, "zero_stage": 2}},
    "dp2_zero3": {"runtime": {"micro_batch": 4, "zero_stage": 3}},
    "tp2_zero1": {"tensor_parallel": 2},
    "tp2_zero2_accumulation4": {"tensor_parallel": 2, "runtime": {"micro_batch": 2, "zero_stage": 2}},
}
"""Ways of sharing that are compared with one worker."""
_RESHARDED = {
    "world_2_to_1": ("one-of-two", "saved"),
    "world_2_to_1_to_2": ("two-of-one", "saved"),
    "zero_1_to_3": ("zero3-of-zero1", "saved"),
    "zero_3_to_1": ("one-of-zero3", "saved-zero3"),
    "tp_2_to_1": ("one-of-tp2", "saved-tp2"),
    "tp_1_to_2": ("tp2-of-zero1", "saved"),
}
"""Change of sharing -> job that loads, job that saved."""


def figures(root: Path, inputs: Mapping[str, str]) -> Iterator[Figure]:
    """Run all jobs at once, then yield their comparisons."""
    root.mkdir()
    results = worker_groups.results(root, _groups(root, inputs))
    for name in _halves_names():
        straight_state, resumed_state = results[name]["states"]
        differing = sum(straight_state[key] != resumed_state.get(key) for key in straight_state)
        loss_error = _relative_error(*results[name]["losses"])
        comparison = f"of {len(straight_state)} tensors and numbers; loss error {loss_error:g}"
        yield Figure(f"train/resume_{name}_differing", differing, "", 0, peer=comparison)
    for name, (loading_job, saving_job) in _RESHARDED.items():
        loaded_state = results[loading_job]["state"]
        saved_state = results[saving_job]["state"]
        differing = sum(loaded_state.get(key) != value for key, value in saved_state.items())
        comparison = f"of {len(saved_state)}"
        yield Figure(f"train/reshard_{name}_differing", differing, "", 0, peer=comparison)
        error = _relative_error(results[saving_job]["losses"], results[loading_job]["losses"])
        yield Figure(f"train/reshard_{name}_next_losses", error, "relative", 1e-6)
    plain_rows = results["alone"]["rows"]
    for name in [*_AGAINST_ONE, "one_accumulation4", "tp2_dp2_zero2"]:
        rows = results[name]["rows"]
        for column, quantity in enumerate(("loss", "norm")):
            error = _relative_error([row[column] for row in plain_rows], [row[column] for row in rows])
            yield Figure(f"train/{name}_{quantity}_of_20_steps", error, "relative", 5e-6)


def _relative_error(expected: Sequence[float], measured: Sequence[float]) -> float:
    return max(
        abs(expected_value - value) / abs(expected_value)
        for expected_value, value in zip(expected, measured, strict=True)
    )


def _halves_names() -> list[str]:
    return [f"{precision}_zero{zero}_tp{tp}" for precision in ("fp32", "bf16") for zero, tp in _HALVES]


def _groups(root: Path, inputs: Mapping[str, str]) -> dict[str, tuple[int, Settings]]:
    """Return number of workers and jobs of each group; a job may wait for a checkpoint of another group."""

    def job(name: str, function: str, saved_by: str = "", **changes: Any) -> Settings:
        saved_input = {"saved": str(root / saved_by)} if saved_by else {}
        changes["runtime"] = {"micro_batch": 8, **changes.get("runtime", {})}
        return worker_groups.job(
            root / name, {**inputs, **saved_input}, f"{worker_groups.WORKER}:{function}", **changes
        )

    two_workers = {
        "saved": job("saved", "save_state"),
        "saved-zero3": job("saved-zero3", "save_state", runtime={"zero_stage": 3}),
        "saved-tp2": job("saved-tp2", "save_state", tensor_parallel=2, runtime={"zero_stage": 2}),
        "zero3-of-zero1": job("zero3-of-zero1", "load_state", "saved", runtime={"zero_stage": 3}),
        "tp2-of-zero1": job("tp2-of-zero1", "load_state", "saved", tensor_parallel=2),
        **{name: job(name, "some_steps", **changes) for name, changes in _AGAINST_ONE.items()},
    }
    for name, (zero_stage, tensor_ranks) in zip(_halves_names(), _HALVES * 2, strict=True):
        changes: Settings = {
            "precision": name[:4],
            "tensor_parallel": tensor_ranks,
            "runtime": {"zero_stage": zero_stage},
        }
        # Dropout, so that resuming has to restore the random numbers, too.
        two_workers[name] = job(name, "halves", model={"dropout": 0.1}, **changes)
    two_workers["two-of-one"] = job("two-of-one", "load_state", "one-of-two")
    one_worker = {
        "alone": job("alone", "some_steps"),
        "one_accumulation4": job("one_accumulation4", "some_steps", runtime={"micro_batch": 2}),
        "one-of-two": job("one-of-two", "load_state", "saved"),
        "one-of-zero3": job("one-of-zero3", "load_state", "saved-zero3"),
        "one-of-tp2": job("one-of-tp2", "load_state", "saved-tp2"),
    }
    four_workers = {
        "tp2_dp2_zero2": job(
            "tp2_dp2_zero2", "some_steps", tensor_parallel=2, runtime={"zero_stage": 2, "micro_batch": 4}
        )
    }
    return {"two": (2, two_workers), "one": (1, one_worker), "four": (4, four_workers)}
