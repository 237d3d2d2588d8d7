"""The model's configuration for transformers: the released keys, and those that the release left out.

Owns the form of `config.json`. What the numbers mean is `architecture.py`'s. A config without `norm` and
`sandwich_norm` is a released one: LayerNorm, no sandwich. Travels with exported models.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from openba.recipes.architecture import Architecture


class OpenBAConfig(PreTrainedConfig):
    """Shape and special ids of an OpenBA model.

    The fields of `Architecture` are keys of their own here, with the released names and defaults.

    Raises:
        ValueError: a value that no model can have; the message names the key.
    """

    model_type = "openba"
    keys_to_ignore_at_inference = ["past_key_values"]
    # transformers sizes a decoder's cache by `num_hidden_layers`: the decoder's depth, not the encoder's.
    attribute_map = {
        "num_hidden_layers": "num_decoder_layers",
        "num_attention_heads": "num_heads",
        "head_dim": "kv_channels",
    }

    vocab_size: int = 32128
    hidden_size: int = 512
    kv_channels: int = 64
    num_heads: int = 8
    ffn_hidden_size: int = 2048
    num_layers: int = 12
    num_decoder_layers: int | None = None
    ffn_multiple: int = 256
    norm: str = "layernorm"
    sandwich_norm: bool = False
    layer_norm_epsilon: float = 1e-5
    add_qkv_bias: bool = False
    add_ffn_bias: bool = False
    add_lm_head_bias: bool = False
    tie_word_embeddings: bool = True
    scale_embedding: bool = False
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    rope_theta: float | int = 10_000.0
    max_seq_length: int = 1024
    decoder_max_seq_length: int = 256
    initializer_range: float = 0.02
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        super().__post_init__(**kwargs)
        if self.add_ffn_bias:
            raise ValueError("add_ffn_bias: true is not supported; no OpenBA model has biases there")
        # Made once to be checked: a value that no model can have is refused here, by its key.
        self.architecture()

    def architecture(self) -> Architecture:
        """Return the shape alone."""
        return Architecture(**{name: getattr(self, name) for name in Architecture.names()})
