"""The model's shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from openba.artifacts import Recipe
from openba.recipes.architecture import Architecture
from openba.recipes.numbers import Decay, Positive, Size


class ModelRecipe(Recipe):
    """An asymmetric encoder-decoder (paper section 3.2 and Table 1). Any depths, paper form by default."""

    d_model: Size
    num_heads: Size
    kv_channels: Size
    """Width of one head; heads * kv_channels may differ from d_model (release: 40 * 128 != 4096)."""
    ffn: Annotated[Size, Field(ge=2)]
    """Nominal width; SwiGLU uses ffn_multiple * ceil(int(2 * ffn / 3) / ffn_multiple)."""
    ffn_multiple: Size = 256
    encoder_layers: Size
    decoder_layers: Size
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Paper: RMSNorm; released weights: LayerNorm with bias."""
    sandwich: bool = True
    """Normalise the output of each attention layer as well (paper); the released weights do not."""
    attention_bias: bool = False
    tie_embeddings: bool = True
    scale_embedding: bool = True
    """Multiply embeddings by sqrt(d_model). Neither the paper nor the release mentions it; without it the
    paper's sandwich norm drowns the embeddings (docs/learning.md). The released weights do without."""
    head_bias: bool = False
    rope_base: Positive = 10_000.0
    norm_eps: Positive = 1e-5
    dropout: Decay = 0.0
    """Of sublayers' outputs, and of attention probabilities unless `attention_dropout` says otherwise."""
    attention_dropout: Annotated[Decay | None, Field(exclude_if=lambda share: share is None)] = None
    """Of attention probabilities; none: `dropout`, as in the release. Recent recipes take 0, which attention
    kernels without dropout need. A recipe that does not name it keeps its fingerprint."""
    init_std: Positive | None = None
    """Standard deviation of the initial weights; none: 1 / sqrt(d_model), which is near the release's 0.02
    at its own width only (docs/learning.md)."""
    positions: Size = 1024
    """Positions of the rotary table, for either side; longer input is refused (released configs: 1024)."""
    vocab_multiple: Size = 128
    """The embedding is padded to a multiple of this (128 * tensor-parallel size)."""

    @model_validator(mode="after")
    def _is_a_model(self) -> ModelRecipe:
        # `Architecture` has the rules; the number of token ids does not matter for them.
        self.architecture(1)  # says what no model can have
        return self

    @property
    def ffn_inner(self) -> int:
        """Width of the gate and up projections."""
        return self.architecture(1).ffn_inner

    def padded_vocab(self, used: int) -> int:
        """Rows of the embedding for `used` token ids."""
        return self.vocab_multiple * -(-used // self.vocab_multiple)

    def architecture(self, used: int) -> Architecture:
        """Return the model's numbers under their released names, for a tokenizer of `used` ids."""
        return Architecture(
            vocab_size=self.padded_vocab(used),
            hidden_size=self.d_model,
            kv_channels=self.kv_channels,
            num_heads=self.num_heads,
            ffn_hidden_size=self.ffn,
            num_layers=self.encoder_layers,
            num_decoder_layers=self.decoder_layers,
            ffn_multiple=self.ffn_multiple,
            norm=self.norm,
            sandwich_norm=self.sandwich,
            layer_norm_epsilon=self.norm_eps,
            add_qkv_bias=self.attention_bias,
            add_lm_head_bias=self.head_bias,
            tie_word_embeddings=self.tie_embeddings,
            scale_embedding=self.scale_embedding,
            hidden_dropout=self.dropout,
            attention_dropout=self.dropout if self.attention_dropout is None else self.attention_dropout,
            rope_theta=self.rope_base,
            max_seq_length=self.positions,
            decoder_max_seq_length=self.positions,
            initializer_range=self.d_model**-0.5 if self.init_std is None else self.init_std,
        )
