"""Choice of the code that computes a tensor: the CPU's own, or CUDA's, which meta tensors follow.

Owns the choice for `kernels.py` and `attention.py`. The code of CUDA devices can be run on a CPU, to compare
its numbers and to time its Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_cuda_code_everywhere = False


def runs_cpu_code(device: torch.device) -> bool:
    """Return whether tensors on `device` are computed by `openba.model.cpu`."""
    return device.type == "cpu" and not _cuda_code_everywhere


@contextmanager
def cuda_code_everywhere() -> Iterator[None]:
    """Compute tensors on a CPU by the code of `openba.model.cuda` inside the block."""
    global _cuda_code_everywhere
    _cuda_code_everywhere = True
    try:
        yield
    finally:
        _cuda_code_everywhere = False
