"""Whether the workers' copies of the parameters are the same, bit by bit.

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
    sums = [
        parameter.detach().reshape(-1).view(_INTEGER[parameter.element_size()]).sum(dtype=torch.int64)
        for parameter in engine.engine.module.parameters()
    ]
    return torch.stack(sums)


def differing(engine: Engine) -> str:
    """Which ranks differ from the most, and where; empty if none does. All workers call it together.

    Returns nothing under ZeRO 3, whose workers hold no copies.
    """
    size = engine.groups.tensor.size
    if engine.world == 1 or engine.zero_stage == 3:
        return ""
    own = checksums(engine)
    gathered = [torch.empty_like(own) for _ in range(engine.world)]
    dist.all_gather(gathered, own)
    everyone, named = [tensor.tolist() for tensor in gathered], list(engine.engine.module.named_parameters())
    names = [name for name, _ in named]
    found = [told(everyone[first::size], names, range(first, engine.world, size)) for first in range(size)]
    # Norms and output biases are whole on every rank of a tensor-parallel group, too.
    whole = [place for place, (_, parameter) in enumerate(named) if split_of(parameter) is None]
    columns = [[sums[place] for place in whole] for sums in everyone]
    found.append(told(columns, [names[place] for place in whole], range(engine.world)))
    return next(filter(None, found), "")


def told(everyone: list[list[int]], names: list[str], ranks: Sequence[int]) -> str:
    """The line for checksums `[rank][parameter]` of `ranks`; of two equally large camps both are named."""
    camps = Counter(map(tuple, everyone)).most_common()
    if len(camps) == 1:
        return ""
    majority = camps[0][0] if camps[0][1] > camps[1][1] else None
    odd = [rank for rank, sums in zip(ranks, everyone, strict=True) if tuple(sums) != majority]
    columns = zip(names, zip(*everyone, strict=True), strict=True)
    where = [name for name, column in columns if len(set(column)) > 1]
    rest = f" and {len(where) - 1} more" if len(where) > 1 else ""
    return f"parameters of rank {', '.join(map(str, odd))} differ: {where[0]}{rest}"
