"""Products, norms and rotations by device kind.

`Kernels` is the whole interface: a device kind that has something faster than the plain formulas of
`functions.py` implements it in its own folder, and nothing else of the model changes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload

from openba.model.cpu.cpu_kernels import CPUKernels
from openba.model.cuda.cuda_kernels import CUDAKernels
from openba.model.device_code import runs_cpu_code


class Kernels(Protocol):
    """Functions of one device kind; each computes what its namesake in `functions.py` computes."""

    @property
    def saved_operations(self) -> tuple[OpOverload, ...]:
        """Operations whose results selective recomputation keeps: the matrix products."""
        ...

    def linear(self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute what `torch.nn.functional.linear` computes."""
        ...

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add `left @ right` to `total`, which is as precise or more, in place."""
        ...

    def rms_norm(self, hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See `functions.rms_norm`."""
        ...

    def swiglu(self, gate_and_up: Tensor) -> Tensor:
        """See `functions.swiglu`."""
        ...

    def split_rotate(
        self, packed_qkv: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `functions.split_rotate`."""
        ...


# Made once: they have no state, and layers ask for them in each call.
_CPU_KERNELS = CPUKernels()
_CUDA_KERNELS = CUDAKernels()


def kernels_for(device: torch.device) -> Kernels:
    """Return the kernels for tensors on `device`; meta tensors, and a graph that is compiled, take CUDA's."""
    # The compiler fuses the plain formulas; it cannot look into the CPU's own.
    takes_cpu_kernels = runs_cpu_code(device) and not torch.compiler.is_compiling()
    return _CPU_KERNELS if takes_cpu_kernels else _CUDA_KERNELS
