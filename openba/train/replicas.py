"""Comparison of the workers' copies of the parameters, bit by bit.

Owns one check. Under ZeRO 1 and 2 all workers hold all parameters; a memory error or a wrong reduction on
one of them makes its copy differ, which no loss shows for long (BLOOM's norms drifted so for weeks).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from openba.model.parallel import split_of
from openba.train.engine import Engine

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(engine: Engine) -> Tensor:
    """Sum of each parameter's bits, read as integers, int64 `[parameters]`: any one flipped bit shows."""
    # Integers, whose sum is exact: floats would hide a flipped low bit.
    bit_sums = [
        parameter.detach().reshape(-1).view(_INTEGER[parameter.element_size()]).sum(dtype=torch.int64)
        for parameter in engine.engine.module.parameters()
    ]
    return torch.stack(bit_sums)


def differing(engine: Engine) -> str:
    """Describe which ranks differ from the majority, and where; empty if none does. All workers call it.

    Returns nothing under ZeRO 3, whose workers hold no copies.
    """
    group_size = engine.groups.tensor.size
    if engine.world == 1 or engine.zero_stage == 3:
        return ""
    own_sums = checksums(engine)
    gathered = [torch.empty_like(own_sums) for _ in range(engine.world)]
    dist.all_gather(gathered, own_sums)
    rank_sums = [tensor.tolist() for tensor in gathered]
    named_parameters = list(engine.engine.module.named_parameters())
    names = [name for name, _ in named_parameters]
    # Ranks of one tensor-parallel position hold the same pieces.
    differences = [
        describe_difference(rank_sums[first::group_size], names, range(first, engine.world, group_size))
        for first in range(group_size)
    ]
    # Norms and output biases are replicated on every rank of a tensor-parallel group, too.
    replicated = [
        number for number, (_, parameter) in enumerate(named_parameters) if split_of(parameter) is None
    ]
    replicated_sums = [[sums[number] for number in replicated] for sums in rank_sums]
    replicated_names = [names[number] for number in replicated]
    differences.append(describe_difference(replicated_sums, replicated_names, range(engine.world)))
    return next(filter(None, differences), "")


def describe_difference(rank_sums: list[list[int]], names: list[str], ranks: Sequence[int]) -> str:
    """Describe in a line how checksums `[rank][parameter]` of `ranks` differ; empty if they do not.

    Of two equally large camps both are named.
    """
    camps = Counter(map(tuple, rank_sums)).most_common()
    if len(camps) == 1:
        return ""
    majority = camps[0][0] if camps[0][1] > camps[1][1] else None
    odd_ranks = [rank for rank, sums in zip(ranks, rank_sums, strict=True) if tuple(sums) != majority]
    by_parameter = zip(names, zip(*rank_sums, strict=True), strict=True)
    odd_names = [name for name, sums in by_parameter if len(set(sums)) > 1]
    others = f" and {len(odd_names) - 1} more" if len(odd_names) > 1 else ""
    return f"parameters of rank {', '.join(map(str, odd_ranks))} differ: {odd_names[0]}{others}"
