"""One number that sets a pipeline's depth, width, batch, rates and budgets: `size`.

Owns the rules. What a file or `--set` states itself stays as it is stated.
"""

from __future__ import annotations

import math

from openba.json_types import JsonObject

HEAD = 64
"""Channels of an attention head, and of width for each decoder layer."""
STAGE2_SHARE = 0.1
STAGE3_SHARE = 0.5
"""Of Stage I's tokens. The paper has 40 of 300; instructions are where a small model's skills come from."""
REFERENCE_WIDTH = 256
REFERENCE_RATE = 1e-3
"""The rate that learns at this width (docs/learning.md)."""
_LARGEST_BATCH = 1024


def dialled(size: int, tokens_per_parameter: float) -> JsonObject:
    """Dotted key -> value of every setting that follows from `size`, the number of decoder layers.

    The rules:
        shape: `size` decoder layers and a third as many encoder layers (the paper's ratio), 64 channels of
            width a decoder layer, heads of 64, feed-forward nominally four times the width d.
        parameters of the layers: 12 d^2 an encoder layer and 16 d^2 a decoder layer, as each attention has
            4 d^2 and SwiGLU 8 d^2. Embeddings do not count.
        batch: samples, the power of two nearest to 32 (d / 256)^(4/3), at most 1,024: the batch that still
            helps grows with the model.
        rates: Stages I and III 1e-3 (256 / d)^(1/2), Stage II half of it; each falls to a tenth.
        budgets, in padded tokens: Stage I `tokens_per_parameter` for each parameter of the layers, Stage II a
            tenth and Stage III half of that.
    """
    width = HEAD * size
    encoders = max(1, round(size / 3))
    tokens = tokens_per_parameter * (12 * encoders + 16 * size) * width**2
    # A power of two divides evenly among workers and micro-batches.
    batch = min(_LARGEST_BATCH, 2 ** round(math.log2(32 * (width / REFERENCE_WIDTH) ** (4 / 3))))
    rate = REFERENCE_RATE * (REFERENCE_WIDTH / width) ** 0.5
    values: JsonObject = {
        "model.decoder_layers": size,
        "model.encoder_layers": encoders,
        "model.d_model": width,
        "model.num_heads": size,
        "model.kv_channels": HEAD,
        "model.ffn": 4 * width,
    }
    stages = (("stage1", 1.0, rate), ("stage2", STAGE2_SHARE, rate / 2), ("stage3", STAGE3_SHARE, rate))
    for stage, share, peak in stages:
        values |= {
            f"stages.{stage}.batch": batch,
            f"stages.{stage}.budget": f"{round(tokens * share)} tokens",
            f"stages.{stage}.optim.lr": float(f"{peak:.2g}"),
            f"stages.{stage}.optim.min_lr": float(f"{peak / 10:.2g}"),
        }
    return values
