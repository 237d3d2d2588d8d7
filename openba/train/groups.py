"""Tensor-parallel and data-parallel groups: workers that share weights, and workers that share data.

Owns the groups, as DeepSpeed asks for them (its `mpu`). Neighbouring ranks share weights: they exchange most,
so they should stand in one node, and Ray numbers the workers node by node. There is no pipeline parallelism
(paper: pipeline size 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch.distributed as dist

from openba.errors import UserError
from openba.model.parallel_loss import TensorGroup


@dataclass(frozen=True)
class Groups:
    """Groups of this worker: rank = data rank * tensor-parallel size + tensor rank."""

    tensor: TensorGroup
    data: dist.ProcessGroup | None
    """Workers with this one's part of the weights and other data; None: all."""
    data_rank: int
    data_size: int

    def get_model_parallel_rank(self) -> int:
        """DeepSpeed's name for the tensor rank."""
        return self.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        """DeepSpeed's name for the tensor-parallel size."""
        return self.tensor.size

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        """DeepSpeed's name for the tensor-parallel group."""
        return self.tensor.handle

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        """Rank among the workers with other data."""
        return self.data_rank

    def get_data_parallel_world_size(self) -> int:
        """Return the number of workers with different data, this one included."""
        return self.data_size

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        """Group of the workers with other data and this one."""
        return self.data


@cache
def make_groups(tensor_parallel: int) -> Groups:
    """Create the groups of all workers; every worker must call it.

    Raises:
        UserError: the workers cannot be divided into groups of this size.
    """
    rank = dist.get_rank()
    world = dist.get_world_size()
    if world % tensor_parallel:
        raise UserError(
            f"runtime: train.workers {world} is not a multiple of tensor_parallel {tensor_parallel}; "
            "change one of them"
        )
    if tensor_parallel == 1:
        return Groups(TensorGroup(None, 0, 1), None, rank, world)
    # Neighbouring ranks share weights: they exchange most, and Ray numbers workers node by node.
    size = world // tensor_parallel
    data_rank, tensor_rank = divmod(rank, tensor_parallel)
    # Every worker has to make every group, in the same order.
    tensor = [dist.new_group(range(n * tensor_parallel, (n + 1) * tensor_parallel)) for n in range(size)]
    data = [dist.new_group(range(n, world, tensor_parallel)) for n in range(tensor_parallel)]
    return Groups(
        TensorGroup(tensor[data_rank], tensor_rank, tensor_parallel), data[tensor_rank], data_rank, size
    )
