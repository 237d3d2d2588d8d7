"""Ways of sharing and resuming a training, each against the plainest: errors, in bits where that is asked.

Tiny models in groups of one, two and four processes over gloo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from tests.harness import gangs

_HALVES = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]
"""ZeRO stage and tensor-parallel ranks of two workers."""
_AGAINST_ONE: dict[str, dict[str, Any]] = {
    "dp2_zero1": {},
    "dp2_zero2_accumulation4": {"runtime": {"micro_batch": 1, "zero_stage": 2}},
    "dp2_zero3": {"runtime": {"micro_batch": 4, "zero_stage": 3}},
    "tp2_zero1": {"tensor_parallel": 2},
    "tp2_zero2_accumulation4": {"tensor_parallel": 2, "runtime": {"micro_batch": 2, "zero_stage": 2}},
}
_LOADED = {
    "world_2_to_1": ("one-of-two", "saved"),
    "world_2_to_1_to_2": ("two-of-one", "saved"),
    "zero_1_to_3": ("zero3-of-zero1", "saved"),
    "zero_3_to_1": ("one-of-zero3", "saved-zero3"),
    "tp_2_to_1": ("one-of-tp2", "saved-tp2"),
    "tp_1_to_2": ("tp2-of-zero1", "saved"),
}


def figures(root: Path, inputs: Mapping[str, str]) -> Iterator[Figure]:
    """All runs at once, then their comparisons."""
    root.mkdir()
    found = gangs.results(root, _groups(root, inputs))
    for name in _halves_names():
        straight, resumed = found[name]["states"]
        odd = sum(straight[key] != resumed.get(key) for key in straight)
        told = f"of {len(straight)} tensors and numbers; loss error {_error(*found[name]['losses']):g}"
        yield Figure(f"train/resume_{name}_differing", odd, "", 0, peer=told)
    for name, (loaded, saved) in _LOADED.items():
        states = [found[each]["state"] for each in (loaded, saved)]
        odd = sum(states[0].get(key) != value for key, value in states[1].items())
        yield Figure(f"train/reshard_{name}_differing", odd, "", 0, peer=f"of {len(states[1])}")
        error = _error(found[saved]["losses"], found[loaded]["losses"])
        yield Figure(f"train/reshard_{name}_next_losses", error, "relative", 1e-6)
    plain = found["alone"]["rows"]
    for name in [*_AGAINST_ONE, "one_accumulation4", "tp2_dp2_zero2"]:
        pairs = list(zip(plain, found[name]["rows"], strict=True))
        for place, what in enumerate(("loss", "norm")):
            error = _error([row[place] for row, _ in pairs], [row[place] for _, row in pairs])
            yield Figure(f"train/{name}_{what}_of_20_steps", error, "relative", 5e-6)


def _error(expected: list[float], found: list[float]) -> float:
    return max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))


def _halves_names() -> list[str]:
    return [f"{p}_zero{zero}_tp{tp}" for p in ("fp32", "bf16") for zero, tp in _HALVES]


def _groups(root: Path, inputs: Mapping[str, str]) -> dict[str, tuple[int, dict[str, Any]]]:
    def job(name: str, do: str, saved: str = "", **change: Any) -> dict[str, Any]:
        more = {"saved": str(root / saved)} if saved else {}
        change["runtime"] = {"micro_batch": 8, **change.get("runtime", {})}
        return gangs.job(root / name, {**inputs, **more}, f"{gangs.WORKER}:{do}", **change)

    two = {
        "saved": job("saved", "save_state"),
        "saved-zero3": job("saved-zero3", "save_state", runtime={"zero_stage": 3}),
        "saved-tp2": job("saved-tp2", "save_state", tensor_parallel=2, runtime={"zero_stage": 2}),
        "zero3-of-zero1": job("zero3-of-zero1", "load_state", "saved", runtime={"zero_stage": 3}),
        "tp2-of-zero1": job("tp2-of-zero1", "load_state", "saved", tensor_parallel=2),
        **{name: job(name, "some_steps", **change) for name, change in _AGAINST_ONE.items()},
    }
    for name, (zero, tp) in zip(_halves_names(), _HALVES * 2, strict=True):
        change: dict[str, Any] = {
            "precision": name[:4],
            "tensor_parallel": tp,
            "runtime": {"zero_stage": zero},
        }
        two[name] = job(name, "halves", model={"dropout": 0.1}, **change)
    two["two-of-one"] = job("two-of-one", "load_state", "one-of-two")
    one = {
        "alone": job("alone", "some_steps"),
        "one_accumulation4": job("one_accumulation4", "some_steps", runtime={"micro_batch": 2}),
        "one-of-two": job("one-of-two", "load_state", "saved"),
        "one-of-zero3": job("one-of-zero3", "load_state", "saved-zero3"),
        "one-of-tp2": job("one-of-tp2", "load_state", "saved-tp2"),
    }
    shared: dict[str, Any] = {"tensor_parallel": 2, "runtime": {"zero_stage": 2, "micro_batch": 4}}
    four = {"tp2_dp2_zero2": job("tp2_dp2_zero2", "some_steps", **shared)}
    return {"two": (2, two), "one": (1, one), "four": (4, four)}
