"""Launches, FLOPs and bytes of code, counted as it runs on meta tensors.

Owns what one operation costs: which are free (views, memory without values), how many bytes of device memory
it must read and write at least, and whether it is a matrix product, attention, or neither. A count is of the
real code of a device kind, without the device; what it costs in time is `roofline.py`'s. Where torch has one
kernel on CUDA and a chain of operations on meta tensors, the kernel is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Part = Literal["product", "attention", "other"]

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
ATTENTION = frozenset(
    f"_{prefix}{name}{direction}"
    for prefix in ("", "scaled_dot_product_")
    for name in ("flash_attention", "efficient_attention", "cudnn_attention")
    for direction in ("_forward", "", "_backward")
)
# Memory without values, or another look at the same values.
_FREE = frozenset({
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "detach", "alias", "lift_fresh",
})  # fmt: skip
_FILLS = frozenset({
    "zeros", "zeros_like", "new_zeros", "zero_", "full", "full_like", "new_full", "fill_",
    "ones", "ones_like",
})  # fmt: skip
_PICKS = frozenset({"gather", "index_select", "embedding", "index"})
_PUTS = frozenset({"scatter_add_", "scatter_add", "index_add_", "index_add", "index_put_", "index_copy_"})


@dataclass
class Cost:
    """Summed costs of some operations."""

    launches: int = 0
    flops: int = 0
    bytes: int = 0

    def add(self, flops: int, moved_bytes: int) -> None:
        """Add one launch."""
        self.launches += 1
        self.flops += flops
        self.bytes += moved_bytes


@dataclass(frozen=True)
class Product:
    """A matrix product `[rows, inner] @ [inner, columns]`."""

    rows: int
    columns: int
    inner: int

    @property
    def flops(self) -> int:
        """Two a multiply-add."""
        return 2 * self.rows * self.columns * self.inner


class OperationCounter(TorchDispatchMode):
    """Counts what runs inside a `with` block, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self._cuda_functions = _CUDAFunctions(self)
        self.parts: dict[Part, Cost] = {"product": Cost(), "attention": Cost(), "other": Cost()}
        self.by_name: defaultdict[str, Cost] = defaultdict(Cost)
        self.products: list[Product] = []
        """Shapes of all matrix products."""

    @property
    def launches(self) -> int:
        """Kernels of all parts together."""
        return sum(cost.launches for cost in self.parts.values())

    def __enter__(self) -> Self:
        self._cuda_functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._cuda_functions.__exit__(*error)

    def add(self, part: Part, name: str, flops: int, moved_bytes: int) -> None:
        """Add one launch."""
        self.parts[part].add(flops, moved_bytes)
        self.by_name[name].add(flops, moved_bytes)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and add its cost."""
        options = kwargs or {}
        result = func(*args, **options)
        name = func.overloadpacket.__name__
        has_output = next(_tensors(result), None) is not None
        if func.is_view or name in _FREE or not has_output:
            return result
        part: Part = "product" if name in PRODUCTS else "attention" if name in ATTENTION else "other"
        flops = 0
        # Attention's FLOPs follow from the rows' lengths, which a meta tensor of offsets does not tell.
        if part == "product":
            left, right = (args[1], args[2]) if "add" in name else (args[0], args[1])
            batch = left.shape[0] if left.dim() == 3 else 1
            self.products += batch * [Product(left.shape[-2], right.shape[-1], left.shape[-1])]
            flops = batch * self.products[-1].flops
        self.add(part, name, flops, _moved_bytes(name, args, options, result))
        return result


class _CUDAFunctions(TorchFunctionMode):
    """Functions of torch that are single kernels on CUDA."""

    def __init__(self, counter: OperationCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, or count its kernel."""
        options = kwargs or {}
        if func is torch.nn.functional.rms_norm:
            return _CountedNorm.apply(args[0], options["weight"], self.counter)
        if func is torch.nn.functional.dropout:
            if not (options["training"] and options["p"]):
                return args[0]
            return torch.native_dropout(args[0], options["p"], True)[0]
        return func(*args, **options)


class _CountedNorm(torch.autograd.Function):
    """RMSNorm as CUDA has it: one kernel forward; for the input's and the weight's gradient one each."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, counter: OperationCounter) -> Tensor:
        ctx.counter = counter
        ctx.save_for_backward(hidden_states, weight)
        counter.add("other", "rms_norm", 0, 2 * _size(hidden_states))
        return torch.empty_like(hidden_states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_states, weight = ctx.saved_tensors
        ctx.counter.add("other", "rms_norm_backward", 0, 3 * _size(hidden_states))
        ctx.counter.add("other", "rms_norm_backward", 0, 2 * _size(hidden_states))
        return torch.empty_like(hidden_states), torch.empty_like(weight), None


def _moved_bytes(name: str, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> int:
    """Bytes that an operation must read and write if nothing is in a cache."""
    outputs = list(_tensors(result))
    written = sum(map(_size, outputs))
    if name in _FILLS:
        return written
    # Only the picked or changed elements of the large tensor are touched.
    if name in _PICKS:
        indices = (tensor for tensor in _tensors((args[1:], options)) if not tensor.is_floating_point())
        return 2 * written + sum(map(_size, indices))
    if name in _PUTS:
        others = list(_tensors((args[1:], options)))
        return sum(map(_size, others)) + 2 * max(map(_size, others), default=0)
    read = sum(map(_size, _tensors((args, {k: v for k, v in options.items() if k != "out"}))))
    if name == "copy_":  # overwrites its first argument without reading it
        read -= _size(args[0])
    return read + written


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    """Bytes of distinct elements: an expanded dimension is read once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else 1
    return elements * tensor.element_size()
