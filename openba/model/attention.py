"""Scaled dot-product attention between rows of tokens, by device kind.

Owns how queries meet keys in either layout (see `rows.py`); projections and rotation are `layers.py`'s,
caches `caches.py`'s. `AttentionBackend` is the whole interface of a device kind. The kernels are torch's,
which keep scores and softmax in fp32 whatever the inputs' precision (paper section 3.4;
`tests/model/test_attention.py` compares the CPU's with fp32 up to scores of 1e4).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.checkpoint import checkpoint

from openba.model.cpu.cpu_attention import CPUAttention
from openba.model.cuda.cuda_attention import CUDAAttention
from openba.model.device_code import runs_cpu_code
from openba.model.rows import Rows


class AttentionBackend(Protocol):
    """Attention of one device kind."""

    @property
    def saved_operations(self) -> tuple[OpOverload, ...]:
        """Operations whose results selective recomputation keeps: the attention kernels."""
        ...

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_rows: Rows,
        key_rows: Rows,
        causal: bool,
        dropout: float,
    ) -> Tensor:
        """See `attend` below."""
        ...


_CPU_ATTENTION = CPUAttention()
_CUDA_ATTENTION = CUDAAttention()


def attention_for(device: torch.device) -> AttentionBackend:
    """Return the attention for tensors on `device`; meta tensors follow CUDA's path."""
    return _CPU_ATTENTION if runs_cpu_code(device) else _CUDA_ATTENTION


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rows: Rows,
    key_rows: Rows,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    dropout_stream: int | None = None,
    recompute: bool = False,
) -> Tensor:
    """Let each query attend to the real tokens of its own row.

    Args:
        query: `[query tokens, heads, kv]`, laid out by `query_rows`.
        key: `[key tokens, heads, kv]`, laid out by `key_rows`.
        value: The same shape.
        query_rows: Rows of the queries.
        key_rows: Rows of keys and values, as many.
        causal: Hide later positions; both layouts are the same then.
        dropout: Share of attention probabilities set to zero.
        dropout_stream: The rank whose random numbers are drawn, of several that share a layer's heads; the
            generator that they have in common advances by as much on each. None: the common generator's.
        recompute: Save nothing for the backward pass, which computes attention again.

    Returns:
        `[query tokens, heads, kv]`. A query whose row has no real key gets zeros, and so do its gradients.
    """
    # Scores and softmax are cheap beside what they would occupy (paper section 3.4).
    if recompute:
        recomputed = checkpoint(
            attend, query, key, value, query_rows, key_rows, use_reentrant=False,
            causal=causal, dropout=dropout, dropout_stream=dropout_stream,
        )  # fmt: skip
        return cast(Tensor, recomputed)
    generator: AbstractContextManager[None] = nullcontext()
    if dropout_stream is not None and dropout:
        generator = _random_stream(dropout_stream, query.device)
    # Ranks that share heads draw different masks for them, and the same ones for all else.
    with generator:
        backend = attention_for(query.device)
        return backend.attend(query, key, value, query_rows, key_rows, causal, dropout)


@contextmanager
def _random_stream(stream: int, device: torch.device) -> Iterator[None]:
    """Draw other random numbers on each rank, from a seed of the common generator.

    Recomputation restores the common generator, and so finds the same numbers.
    """
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + stream)
        yield
