"""Memory of training per device, by formula: model state under ZeRO, activations, logits, checkpoints.

All figures are bytes and estimates of what must be held at once; allocator slack, communication
buffers and kernels' workspaces are not in them. Nothing here asks a device.
"""

from __future__ import annotations

from typing import Literal

from openba.model.logit_slices import slice_tokens
from openba.recipes.architecture import Recompute
from openba.recipes.model import ModelRecipe

Precision = Literal["fp32", "bf16", "fp16"]
_WIDTH: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


def state_bytes(
    parameters: int,
    *,
    zero_stage: Literal[0, 1, 2, 3],
    data_parallel: int,
    tensor_parallel: int = 1,
    precision: Precision = "bf16",
    fp32_gradients: bool = False,
    muon_parameters: int = 0,
) -> dict[str, int]:
    """Model state of one device: parameters, gradients, optimizer, total.

    Half precision holds 2 + 2 (or 4, accumulated in fp32) bytes per parameter and 12 for Adam: the
    fp32 master copy and two moments. fp32 needs no master copy: 4 + 4 + 8. ZeRO (arXiv 1910.02054)
    divides the optimizer from stage 1, gradients from 2, parameters from 3, over the data-parallel
    group; tensor parallelism divides all of it, the embedding too. Muon keeps one moment, not two, of its
    `muon_parameters`.
    """
    # ZeRO shares the optimiser's state first, then gradients, then weights.
    weight_width = _WIDTH[precision]
    part_bytes = {
        "parameters": (weight_width * parameters, 3),
        "gradients": ((4 if fp32_gradients else weight_width) * parameters, 2),
        "optimizer": (_optimizer_width(precision) * parameters - 4 * muon_parameters, 1),
    }
    state = {
        part: -(-size // (tensor_parallel * (data_parallel if zero_stage >= first else 1)))
        for part, (size, first) in part_bytes.items()
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

    * encoder block: 5 d (input, normalised input and output of attention, input and normalised input of the
      MLP), without sandwich norms 4; 6 A (packed q, k and v, rotated q and k, result); 4 f (gate and up,
      activated gate, product). With dropout 2 d bytes of masks.
    * decoder block: the same, and cross-attention's 3 d (2 d) + 2 A per decoder token (q, result) and
      2 A per encoder token (k, v), and another mask.
    * `recompute="none"` adds each attention's score matrices, 2 elements and 1 byte per score and head
      (Korthikanti et al., arXiv 2205.05198, section 4.1: softmax, its dropout mask and output). With
      "attention", or a fused attention kernel, they are recomputed. "full" holds block inputs only.
    * "selective" holds the input, the outputs of matrix products and attention's results: 3 d, 4 A and
      2 f a block; cross-attention 1 d and 2 A per decoder token, 2 A per encoder token. Compiled blocks hold
      about as much.

    Within 5 % of what autograd saves of the real code (`tests/accounting/test_counts.py`). Tensor parallelism
    divides A, f and the scores, and leaves d whole (no sequence parallelism).
    """
    s = encoder_length
    t = decoder_length
    element_width = _WIDTH[precision]
    block_tokens = model.encoder_layers * s + model.decoder_layers * t
    # Each block's input alone, of the model's width.
    if recompute == "full":
        return micro_batch * element_width * model.d_model * block_tokens
    cross_tokens = model.decoder_layers * t
    is_selective = recompute == "selective"
    narrow_tensors = (4 + model.sandwich) * block_tokens + (2 + model.sandwich) * cross_tokens
    mask_bytes = model.d_model * (2 * block_tokens + cross_tokens) if model.dropout else 0
    if is_selective:
        narrow_tensors = 3 * block_tokens + cross_tokens
        mask_bytes = 0
    attention_width = model.num_heads * model.kv_channels
    wide_elements = (4 if is_selective else 6) * block_tokens * attention_width
    wide_elements += attention_width * (2 * cross_tokens + 2 * model.decoder_layers * s)
    wide_elements += (2 if is_selective else 4) * model.ffn_inner * block_tokens
    held_bytes = (
        element_width * (narrow_tensors * model.d_model + wide_elements / tensor_parallel) + mask_bytes
    )
    # Scores grow with the square of the length; all else grows with the length.
    if recompute == "none":
        score_elements = model.encoder_layers * s * s + model.decoder_layers * (t * t + t * s)
        held_bytes += (2 * element_width + 1) * model.num_heads * score_elements / tensor_parallel
    return round(micro_batch * held_bytes)


def loss_bytes(
    model: ModelRecipe,
    vocab: int,
    decoder_length: int,
    *,
    device: Literal["cpu", "cuda"],
    micro_batch: int = 1,
    tensor_parallel: int = 1,
    precision: Precision = "bf16",
    frozen: bool = False,
) -> int:
    """Peak of `openba.model.loss`.

    Logits of a slice of tokens in fp32 and twice in the weights' precision, and, unless it is frozen, the
    head's gradient: in fp32, or, of a single slice in half precision, in that. On CUDA the embedding's two
    gradients are beside it.
    """
    # The slices of `openba.model.loss`; tensor parallelism divides the words, not the tokens.
    vocab_rows = model.padded_vocab(vocab) // tensor_parallel
    slice_length = min(micro_batch * decoder_length, slice_tokens(vocab_rows, device))
    is_one_slice = slice_length == micro_batch * decoder_length
    width = _WIDTH[precision] if is_one_slice else 4
    gradient_width = 0 if frozen else width + 2 * _WIDTH[precision] * (device == "cuda")
    return vocab_rows * (slice_length * (4 + 2 * _WIDTH[precision]) + gradient_width * model.d_model)


def checkpoint_bytes(parameters: int, muon_parameters: int = 0) -> int:
    """Bytes of one resumable checkpoint: fp32 weights and both of Adam's moments or Muon's one.

    The weights in half precision are not written: they are the fp32 ones, rounded (`openba.train.state`).
    """
    return parameters * 12 - muon_parameters * 4


def _optimizer_width(precision: Precision) -> int:
    return 8 if precision == "fp32" else 12
