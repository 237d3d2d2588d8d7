"""The deterministic mode of torch, for a whole process.

Owns which of torch's switches `runtime.train.deterministic` means. On a CPU every kernel that training uses
gives the same bits each time anyhow; on CUDA flash attention's backward pass and scattered sums do only in
this mode.
"""

from __future__ import annotations

import os

import torch


def be_deterministic(is_wanted: bool) -> None:
    """Choose kernels that give the same bits each time, or the fastest; before CUDA is used first."""
    # cuBLAS reads it once; without it its products may differ from run to run.
    if is_wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_wanted)
    # Else every `empty` is written first, for code that reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
