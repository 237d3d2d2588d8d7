"""The shape of a model in numbers, under the key names of the released `config.json`.

Owns what those numbers may be and what follows from them (FFN width, sizes of the parts). It is plain data:
the recipe that a user writes is `openba.recipes.model`, transformers' form is `configuration_openba.py`.
Travels with exported models, so it imports the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

NORMS = ("layernorm", "rmsnorm")
Recompute = Literal["none", "attention", "selective", "full"]
"""What a backward pass computes again instead of keeping it; see `OpenBAModel.recompute`."""


@dataclass(frozen=True)
class Architecture:
    """An asymmetric encoder-decoder. A released config names fewer keys: the defaults are the release's form.

    Raises:
        ValueError: a value that no model can have; the message names the key.
    """

    vocab_size: int
    """Rows of the embedding, padding rows included."""
    hidden_size: int
    kv_channels: int
    """Width of one head; heads * kv_channels need not be hidden_size (release: 40 * 128, 4096)."""
    num_heads: int
    ffn_hidden_size: int
    """Nominal width of the feed-forward layer; SwiGLU uses `ffn_inner`."""
    num_layers: int
    """Encoder blocks."""
    num_decoder_layers: int
    ffn_multiple: int = 256
    norm: str = "layernorm"
    """Released weights: LayerNorm with bias. Paper section 3.2: RMSNorm."""
    sandwich_norm: bool = False
    """Normalise the output of each attention layer too (paper section 3.2; not in the released weights)."""
    layer_norm_epsilon: float = 1e-5
    add_qkv_bias: bool = False
    """Biases of all four attention projections, the output's included (release: true)."""
    add_lm_head_bias: bool = False
    tie_word_embeddings: bool = True
    """Use the embedding as the head, unscaled, as in the release's training."""
    scale_embedding: bool = False
    """Multiply embeddings by sqrt(hidden_size) before the first block, as in the original Transformer. The
    sandwich norm's outputs have unit size: embeddings of `initializer_range` would vanish beside them."""
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    rope_theta: float = 10_000.0
    max_seq_length: int = 1024
    """Positions of the encoder's rotary table; a longer input is refused."""
    decoder_max_seq_length: int = 1024
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm: {self.norm!r} is unknown; take one of {', '.join(NORMS)}")
        for name in (
            *("vocab_size", "hidden_size", "kv_channels", "num_heads", "ffn_hidden_size", "num_layers"),
            *("num_decoder_layers", "ffn_multiple", "max_seq_length", "decoder_max_seq_length"),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < 1:  # nor a bool
                raise ValueError(f"{name}: {value!r} is not a size; give a whole number from 1 on")
        for name in ("hidden_dropout", "attention_dropout"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ValueError(f"{name}: {value!r} is not a share; give a number from 0 to below 1")
        for name in ("layer_norm_epsilon", "rope_theta", "initializer_range"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name}: {value!r} is not a number above 0")
        for name in (
            *("sandwich_norm", "add_qkv_bias", "add_lm_head_bias", "tie_word_embeddings"),
            "scale_embedding",
        ):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}: {getattr(self, name)!r} is neither true nor false")
        if self.kv_channels % 2:
            raise ValueError(
                f"kv_channels: {self.kv_channels} is odd; rotary positions turn pairs of channels"
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the keys of a config that describe the architecture."""
        return tuple(field.name for field in fields(cls))

    @property
    def attention_width(self) -> int:
        """Channels of all heads together."""
        return self.num_heads * self.kv_channels

    @property
    def embedding_scale(self) -> float:
        """Factor on embeddings before the first block of either stack."""
        return math.sqrt(self.hidden_size) if self.scale_embedding else 1.0

    @property
    def ffn_inner(self) -> int:
        """Width of gate and up: 2/3 of the nominal width, rounded up to `ffn_multiple` (release fact)."""
        return self.ffn_multiple * -(-int(2 * self.ffn_hidden_size / 3) // self.ffn_multiple)
