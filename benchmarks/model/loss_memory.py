"""Peak memory of the loss over a large vocabulary, against the full logits that plain torch makes.

Each side runs in a process of its own (`python -m benchmarks.model.loss_memory plain|sliced`), which prints
by how many bytes its peak resident memory exceeds that before the loss: weights and inputs are not counted,
all gradients are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.figure import ROOT, Figure

VOCAB, TOKENS, WIDTH = 250_368, 2_048, 512


def figures() -> Iterator[Figure]:
    """Bytes of both, and the ratio."""
    sliced, plain = (_measured(kind) for kind in ("sliced", "plain"))
    peer = f"full logits: {plain / 2**20:.0f} MiB"
    yield Figure("model/loss_memory", sliced / 2**20, "MiB", peer=peer, ratio=sliced / plain)
    yield Figure("model/loss_memory_of_plain", 100 * sliced / plain, "%", 25, peer=peer, ratio=sliced / plain)


def _measured(kind: str) -> int:
    command = [sys.executable, "-m", "benchmarks.model.loss_memory", kind]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def peak() -> int:
    """VmHWM of this process, bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def _run(kind: str) -> int:
    import torch
    from torch.nn.functional import cross_entropy, linear

    from openba.model.loss import linear_cross_entropy

    torch.manual_seed(0)
    weight = torch.empty(VOCAB, WIDTH).normal_(std=0.02).requires_grad_()
    hidden = torch.empty(TOKENS, WIDTH).normal_().requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,))
    before = peak()
    if kind == "plain":
        loss = cross_entropy(linear(hidden, weight).float(), labels, reduction="sum")
    else:
        loss = linear_cross_entropy(hidden, weight, None, labels)
    (loss / TOKENS).backward()
    return peak() - before


if __name__ == "__main__":
    print(_run(sys.argv[1]))
