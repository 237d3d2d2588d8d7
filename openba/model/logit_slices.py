"""Number of tokens whose logits are in memory together, by device kind. The loss and the memory plan ask it.

Imports no torch: `openba plan` does not load it.
"""

from __future__ import annotations

SLICE_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Logits computed at a time. 2^22 are 16 MB of fp32, which stay in a CPU's last-level cache. 2^28 are 1,072
tokens of the paper's vocabulary, which occupy 2.1 GB in bf16 and fp32: most micro-batches are one slice."""
FEWEST_TOKENS = 64
"""Fewer tokens at a time make a slow matrix product."""


def slice_tokens(vocab: int, device: str) -> int:
    """Return how many tokens' logits over `vocab` words are computed at a time on a device kind."""
    elements = SLICE_ELEMENTS.get(device, SLICE_ELEMENTS["cuda"])
    return max(FEWEST_TOKENS, elements // vocab)
