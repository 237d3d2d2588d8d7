"""Launches and bytes of compiled code, by an ideal fusion of its graphs.

Owns a model of what torch.compile makes of a graph: matrix products and attention stay kernels of their own;
the operations between them become one kernel for each connected group that no such kernel separates. A group
reads each of its inputs once and writes what others need. Inductor's own choice depends on the device; it
splits some reductions and joins some groups, so this counts what is there to be had.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from openba.accounting.operations import ATTENTION, PRODUCTS, Cost


class FusionCounter:
    """A backend of torch.compile that runs graphs as they are, and counts the fused kernels of each."""

    def __init__(self) -> None:
        self.fused = Cost()
        """Kernels between products and attention, of all graphs that were compiled."""
        self.extern_launches = 0
        """Products and attention of the same graphs."""

    def __call__(self, graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile one graph, forward and backward."""
        return aot_module_simplified(
            graph,
            inputs,
            fw_compiler=self._count,  # type: ignore[arg-type]  # any callable does
            bw_compiler=self._count,  # type: ignore[arg-type]
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )

    def _count(self, graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        groups = _groups(graph.graph)
        for nodes in groups.values():
            self.fused.add(0, _moved_bytes(nodes))
        self.extern_launches += sum(map(_is_extern, graph.graph.nodes))
        return graph.forward


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else packet.__name__


def _is_extern(node: fx.Node) -> bool:
    return _name(node) in PRODUCTS | ATTENTION


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        # One of several results of a kernel is a tensor of its own, one of several views is not.
        return not any(map(_is_extern, node.all_input_nodes))
    return bool(getattr(node.target, "is_view", False))


def _is_fusible(node: fx.Node) -> bool:
    is_call = node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
    is_result = any(map(_is_extern, node.all_input_nodes)) and not _name(node)
    return is_call and not _is_extern(node) and not _is_view(node) and not is_result


def _sources(node: fx.Node) -> list[fx.Node]:
    """Nodes whose values a node reads, views looked through."""
    sources: list[fx.Node] = []
    for source in node.all_input_nodes:
        sources += _sources(source) if _is_view(source) else [source]
    return sources


def _groups(graph: fx.Graph) -> dict[int, list[fx.Node]]:
    """Fusible nodes by group: connected, and as many products deep as each other."""
    depth = _depths(graph)
    group_of: dict[fx.Node, int] = {}
    members: defaultdict[int, list[fx.Node]] = defaultdict(list)
    for number, node in enumerate(graph.nodes):
        sources = _sources(node)
        if not _is_fusible(node):
            continue
        near = {group_of[s] for s in sources if s in group_of and depth[s] == depth[node]}
        home = min(near, default=number)
        # A node that reads from several groups joins them.
        for other in near - {home}:
            for moved in members.pop(other):
                group_of[moved] = home
                members[home].append(moved)
        group_of[node] = home
        members[home].append(node)
    return members


def _depths(graph: fx.Graph) -> dict[fx.Node, int]:
    """Products and attention that must run before each node, or may where it is not needed earlier."""
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        depth[node] = max((depth[source] + _is_extern(source) for source in _sources(node)), default=0)
    # What reads no other group, such as a dropout mask or a widened weight, is made where it is used.
    for node in reversed(graph.nodes):
        users = [depth[user] for user in _users(node)]
        if users and _is_fusible(node) and not any(map(_is_extern, _sources(node))):
            depth[node] = max(depth[node], min(users))
    return depth


def _moved_bytes(nodes: list[fx.Node]) -> int:
    inside = set(nodes)
    read = {source for node in nodes for source in _sources(node)} - inside
    written = [node for node in nodes if any(user not in inside for user in _users(node))]
    return sum(map(_size, read)) + sum(map(_size, written))


def _users(node: fx.Node) -> list[fx.Node]:
    """Nodes that read a node's value, views looked through."""
    users: list[fx.Node] = []
    for user in node.users:
        users += _users(user) if _is_view(user) else [user]
    return users


def _size(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return 0
    elements = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        elements *= int(size) if stride else 1
    return elements * value.element_size()
