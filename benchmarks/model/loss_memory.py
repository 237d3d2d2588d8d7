"""Peak memory of the loss over a large vocabulary, against the full logits of plain torch.

Each side runs in a process of its own (`python -m benchmarks.model.loss_memory plain|sliced`), which prints
by how many bytes its peak resident memory exceeds that before the loss: weights and inputs do not count, all
gradients do.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.figure import ROOT, Figure

VOCABULARY_SIZE = 250_368
TOKEN_COUNT = 2_048
HIDDEN_SIZE = 512


def figures() -> Iterator[Figure]:
    """Yield the bytes of the sliced loss, and their share of the plain one's."""
    sliced_bytes = _measure("sliced")
    plain_bytes = _measure("plain")
    peer = f"full logits: {plain_bytes / 2**20:.0f} MiB"
    ratio = sliced_bytes / plain_bytes
    yield Figure("model/loss_memory", sliced_bytes / 2**20, "MiB", peer=peer, ratio=ratio)
    yield Figure("model/loss_memory_of_plain", 100 * ratio, "%", 25, peer=peer, ratio=ratio)


def _measure(loss_kind: str) -> int:
    command = [sys.executable, "-m", "benchmarks.model.loss_memory", loss_kind]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def peak_bytes() -> int:
    """Return the peak resident memory of this process (VmHWM)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def _loss_bytes(loss_kind: str) -> int:
    # Imported here: the parent process needs no torch.
    import torch
    from torch.nn.functional import cross_entropy, linear

    from openba.model.loss import linear_cross_entropy

    torch.manual_seed(0)
    weight = torch.empty(VOCABULARY_SIZE, HIDDEN_SIZE).normal_(std=0.02).requires_grad_()
    hidden = torch.empty(TOKEN_COUNT, HIDDEN_SIZE).normal_().requires_grad_()
    labels = torch.randint(VOCABULARY_SIZE, (TOKEN_COUNT,))
    bytes_before = peak_bytes()
    if loss_kind == "plain":
        loss = cross_entropy(linear(hidden, weight).float(), labels, reduction="sum")
    else:
        loss = linear_cross_entropy(hidden, weight, None, labels)
    (loss / TOKEN_COUNT).backward()
    return peak_bytes() - bytes_before


if __name__ == "__main__":
    print(_loss_bytes(sys.argv[1]))
