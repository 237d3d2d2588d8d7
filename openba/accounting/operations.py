"""Launches, FLOPs and bytes of code, counted as it runs on meta tensors.

Owns what one operation costs: which are free (views, memory without values), how many bytes of device memory
it must read and write at least, and whether it is a matrix product, attention, or neither. A count is of the
real code of a device kind, without the device; what it costs in time is `roofline.py`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Part = Literal["product", "attention", "other"]

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
_ATTENTION = frozenset(
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
    """What some operations cost together."""

    launches: int = 0
    flops: int = 0
    bytes: int = 0

    def add(self, flops: int, moved_bytes: int) -> None:
        """Add one launch."""
        self.launches += 1
        self.flops += flops
        self.bytes += moved_bytes


class OperationCounter(TorchDispatchMode):
    """Counts what runs inside a `with` block, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[Part, Cost] = {"product": Cost(), "attention": Cost(), "other": Cost()}
        self.by_name: defaultdict[str, Cost] = defaultdict(Cost)

    @property
    def launches(self) -> int:
        """Kernels of all parts together."""
        return sum(cost.launches for cost in self.parts.values())

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
        part: Part = "product" if name in _PRODUCTS else "attention" if name in _ATTENTION else "other"
        flops = 0
        # Attention's FLOPs follow from the rows' lengths, which a meta tensor of offsets does not tell.
        if part == "product" and (formula := flop_registry.get(func.overloadpacket)) is not None:
            flops = int(formula(*args, **options, out_val=result))
        moved_bytes = _moved_bytes(name, args, options, result)
        self.parts[part].add(flops, moved_bytes)
        self.by_name[name].add(flops, moved_bytes)
        return result


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
