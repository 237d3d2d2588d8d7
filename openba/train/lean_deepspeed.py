"""DeepSpeed without what training here never uses.

Owns the import, and how gradients are added; what else is done with DeepSpeed is `engine.py`'s. Every worker
of every stage pays for the import when it starts: what is left out saves 4 s of CPU out of 10 and 160 MB
out of 490 (torch 2.13, DeepSpeed 0.19.8).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


def import_deepspeed(device: str) -> ModuleType:
    """DeepSpeed for a `cpu` or `cuda` device; on a CPU it will compile nothing."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    # Its autotuner imports MLflow, if there is one, for a run that it never makes here.
    with _absent("mlflow"):
        import deepspeed
    if device == "cpu":
        _no_compiler()
    return deepspeed


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let imports of a package that is not loaded yet fail as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _no_compiler() -> None:
    """Keep DeepSpeed from compiling on a CPU; both names are private, so guarded.

    Its shared-memory collectives take 38 s and a compiler; its Muon optimiser, always imported,
    is decorated with torch.compile, which loads Inductor.
    """
    from deepspeed import ops
    from deepspeed.runtime import compiler

    if (compatible := getattr(ops, "__compatible_ops__", None)) is not None:
        compatible["deepspeed_shm_comm"] = False
    if (plain := getattr(compiler, "dummy_decorator", None)) is not None:
        compiler.compile = lambda: plain


def add_gradients_at_once(optimizer: Any) -> None:
    """Let `BF16_Optimizer` add a bf16 gradient to its fp32 sum in one pass; others stay as they are.

    DeepSpeed 0.19.8 widens each gradient first: 18 bytes a parameter and micro-batch instead of 10. The sum
    is the same bit by bit. Both names are private, so guarded.
    """
    sums = getattr(optimizer, "fp32_groups_gradients", None)
    if sums is None or not hasattr(optimizer, "_update_hp_grad"):
        return

    @torch.no_grad()
    def add_gradient(parameter: Any, group: int, index: int, clear_lp_grads: bool) -> None:
        if parameter.grad is None:
            return
        gradient_sum = sums[group][index]
        gradient_sum.add_(parameter.grad.view(gradient_sum.shape))
        parameter._hp_grad = gradient_sum
        optimizer.fp32_groups_has_gradients[group][index] = True
        if clear_lp_grads:
            parameter.grad.zero_()

    optimizer._update_hp_grad = add_gradient
