"""Memory of training per device, by formula: model state under ZeRO, activations, logits, checkpoints.

All figures are bytes and estimates of what must be held at once; allocator slack, communication
buffers and kernels' workspaces are not in them. Nothing here asks a device.
"""

from __future__ import annotations

from typing import Literal

from openba.recipes.architecture import Recompute
from openba.recipes.model import ModelRecipe

Precision = Literal["fp32", "bf16", "fp16"]
SLICE_ELEMENTS, SLICE_TOKENS = {"cpu": 2**22, "cuda": 2**27}, 64
"""As in `openba.model.loss`, whose import would cost a second."""
_WIDTH: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


def state_bytes(
    parameters: int,
    *,
    zero_stage: Literal[0, 1, 2, 3],
    data_parallel: int,
    tensor_parallel: int = 1,
    precision: Precision = "bf16",
    fp32_gradients: bool = False,
) -> dict[str, int]:
    """Model state of one device: parameters, gradients, optimizer, total.

    Half precision holds 2 + 2 (or 4, accumulated in fp32) bytes per parameter and 12 for Adam: the
    fp32 master copy and two moments. fp32 needs no master copy: 4 + 4 + 8. ZeRO (arXiv 1910.02054)
    divides the optimizer from stage 1, gradients from 2, parameters from 3, over the data-parallel
    group; tensor parallelism divides all of it, the embedding too.
    """
    width = _WIDTH[precision]
    bytes_each = {
        "parameters": (width, 3),
        "gradients": (4 if fp32_gradients else width, 2),
        "optimizer": (_optimizer_width(precision), 1),
    }
    state = {
        part: -(-size * parameters // (tensor_parallel * (data_parallel if zero_stage >= first else 1)))
        for part, (size, first) in bytes_each.items()
    }
    return {**state, "total": sum(state.values())}


def activation_bytes(
    model: ModelRecipe,
    encoder_length: int,
    decoder_length: int,
    *,
    micro_batch: int = 1,
    tensor_parallel: int = 1,
    precision: Precision = "bf16",
    recompute: Recompute = "attention",
) -> int:
    """Activations that one micro-batch holds for its backward pass, without the logits.

    Counted in tensors per token of a block, of width d (model), A = heads * kv_channels or f (SwiGLU):

    * encoder block: 5 d (input, normalised input and output of attention, input and normalised input
      of the MLP) + 1 d allowed for a norm's own intermediates; 4 A (q, k, v, result); 3 f (gate, up,
      product). Without sandwich norms the attention's output need not be kept: 1 d less.
    * decoder block: the same, and cross-attention's 3 d (2 d) + 2 A per decoder token (q, result) and
      2 A per encoder token (k, v).
    * `recompute="none"` adds each attention's score matrices, 2 elements and 1 byte per score and head
      (Korthikanti et al., arXiv 2205.05198, section 4.1: softmax, its dropout mask and output). With
      "attention", or a fused attention kernel, they are recomputed. "full" holds block inputs only.
    * "selective" holds the input, the outputs of matrix products and attention's results: 3 d, 4 A and
      2 f a block; cross-attention 1 d and 2 A per decoder token, 2 A per encoder token.

    Tensor parallelism divides A, f and the scores, and leaves d whole (no sequence parallelism).
    """
    s, t, width = encoder_length, decoder_length, _WIDTH[precision]
    blocks = model.encoder_layers * s + model.decoder_layers * t
    if recompute == "full":
        return micro_batch * width * model.d_model * blocks
    cross_tokens = model.decoder_layers * t
    narrow = (5 + model.sandwich) * blocks + (2 + model.sandwich) * cross_tokens
    if recompute == "selective":
        narrow = 3 * blocks + cross_tokens
    attention_width = model.num_heads * model.kv_channels
    wide = attention_width * (4 * blocks + 2 * cross_tokens + 2 * model.decoder_layers * s)
    wide += (2 if recompute == "selective" else 3) * model.ffn_inner * blocks
    held = width * (narrow * model.d_model + wide / tensor_parallel)
    if recompute == "none":
        scores = model.encoder_layers * s * s + model.decoder_layers * (t * t + t * s)
        held += (2 * width + 1) * model.num_heads * scores / tensor_parallel
    return round(micro_batch * held)


def logits_bytes(
    model: ModelRecipe,
    vocab: int,
    decoder_length: int,
    *,
    micro_batch: int = 1,
    tensor_parallel: int = 1,
    precision: Precision = "bf16",
) -> int:
    """Peak of a loss that is not fused with the head: logits, their fp32 log-softmax and its gradient."""
    rows = model.padded_vocab(vocab) // tensor_parallel
    return micro_batch * decoder_length * rows * (_WIDTH[precision] + 8)


def loss_bytes(
    model: ModelRecipe,
    vocab: int,
    decoder_length: int,
    *,
    device: Literal["cpu", "cuda"],
    micro_batch: int = 1,
    tensor_parallel: int = 1,
    precision: Precision = "bf16",
) -> int:
    """Peak of `openba.model.loss`.

    Logits of a slice of tokens in fp32 and twice in the weights' precision, and the head's gradient in fp32.
    """
    rows = model.padded_vocab(vocab) // tensor_parallel
    tokens = min(micro_batch * decoder_length, max(SLICE_TOKENS, SLICE_ELEMENTS[device] // rows))
    return rows * (tokens * (4 + 2 * _WIDTH[precision]) + 4 * model.d_model)


def checkpoint_bytes(parameters: int) -> int:
    """Bytes of one resumable checkpoint: fp32 weights and both of Adam's moments, in any precision.

    The weights in half precision are not written: they are the fp32 ones, rounded (`openba.train.state`).
    """
    return parameters * 12


def _optimizer_width(precision: Precision) -> int:
    return 8 if precision == "fp32" else 12
