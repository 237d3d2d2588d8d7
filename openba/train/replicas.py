"""Whether the workers' copies of the parameters are the same, bit by bit.

Owns one check. Under ZeRO 1 and 2 all workers hold all parameters; a memory error or a wrong reduction on
one of them makes its copy differ, which no loss shows for long (BLOOM's norms drifted so for weeks).
"""

from __future__ import annotations

from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor

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
    if engine.world == 1 or engine.zero_stage == 3:
        return ""
    own = checksums(engine)
    everyone = [torch.empty_like(own) for _ in range(engine.world)]
    dist.all_gather(everyone, own)
    return told([tensor.tolist() for tensor in everyone], [name for name, _ in _named(engine)])


def told(everyone: list[list[int]], names: list[str]) -> str:
    """The line for checksums `[rank][parameter]`; of two equally large camps both are named."""
    camps = Counter(map(tuple, everyone)).most_common()
    if len(camps) == 1:
        return ""
    majority = camps[0][0] if camps[0][1] > camps[1][1] else None
    odd = [rank for rank, sums in enumerate(everyone) if tuple(sums) != majority]
    columns = zip(names, zip(*everyone, strict=True), strict=True)
    where = [name for name, column in columns if len(set(column)) > 1]
    rest = f" and {len(where) - 1} more" if len(where) > 1 else ""
    return f"parameters of rank {', '.join(map(str, odd))} differ: {where[0]}{rest}"


def _named(engine: Engine) -> list[tuple[str, Tensor]]:
    return list(engine.engine.module.named_parameters())
