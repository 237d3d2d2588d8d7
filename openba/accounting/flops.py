"""Exact parameter and FLOP counts of an encoder-decoder, from its recipe and sequence lengths.

Owns the counting convention: 2 FLOP per multiply-add, matrix products only, full (non-causal)
attention, a training step = 3 forward passes. It measures nothing; time and peak are `energy`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openba.recipes.architecture import Recompute
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainRecipe, TrainStep, WindowsRecipe

TRAIN_PER_FORWARD = 3
"""The backward pass multiplies each product's output gradient with both of its operands."""


def parameters(model: ModelRecipe, vocab: int) -> dict[str, int]:
    """Exact number of parameters by part: embedding, encoder, decoder, norms, head.

    Encoder and decoder are their projections with biases; all norms of both stacks are under
    `norms`. `head` is zero but for a bias if the embedding is tied. The release's form
    (LayerNorm, attention biases, tied, head bias, 250,368 rows) sums to 14,567,703,040, half the
    bytes of the published fp16 weights.
    """
    d = model.d_model
    attention_width = model.num_heads * model.kv_channels
    # q, k, v and o; biases on q, k, v and the output in the release's form only.
    attention_weights = 4 * d * attention_width + model.attention_bias * (3 * attention_width + d)
    feed_forward = 3 * d * model.ffn_inner
    vocab_rows = model.padded_vocab(vocab)
    # Encoder block: before attention and before the MLP. Decoder: one more, for cross-attention.
    # The paper's sandwich adds one behind each attention; each stack ends with a norm.
    norm_count = (
        (2 + model.sandwich) * model.encoder_layers + (3 + 2 * model.sandwich) * model.decoder_layers + 2
    )
    return {
        "embedding": vocab_rows * d,
        "encoder": model.encoder_layers * (attention_weights + feed_forward),
        "decoder": model.decoder_layers * (2 * attention_weights + feed_forward),
        "norms": norm_count * d * (2 if model.norm == "layernorm" else 1),
        "head": (0 if model.tie_embeddings else vocab_rows * d) + model.head_bias * vocab_rows,
    }


def forward_flops(model: ModelRecipe, vocab: int, encoder_length: int, decoder_length: int) -> dict[str, int]:
    """Forward FLOPs of one sequence by part: encoder, decoder, head. Lengths in tokens."""
    # One sequence: the sums of squares and products are those of its two lengths.
    s = encoder_length
    t = decoder_length
    return _forward(model, vocab, s, t, s * s, t * t, s * t)


def train_flops(model: ModelRecipe, vocab: int, encoder_length: int, decoder_length: int) -> int:
    """Forward and backward FLOPs of one sequence: the paper's shape gives 3.9e13 in Stage I."""
    return TRAIN_PER_FORWARD * sum(forward_flops(model, vocab, encoder_length, decoder_length).values())


def run_flops(step: TrainStep, vocab: int) -> int:
    """FLOPs of a whole training run at its padded lengths, which is what the paper's figures count."""
    train = step.train
    per_sequence = train_flops(step.model, vocab, train.encoder_length, train.decoder_length)
    return round(train.steps * train.batch * per_sequence * trained_share(train))


def trained_share(train: TrainRecipe) -> float:
    """Return the FLOPs of a training step as a share of one that trains all weights.

    Beside an adapter weights are frozen: the backward pass makes the gradients of inputs alone.
    """
    return 1.0 if train.adapter is None else (TRAIN_PER_FORWARD - 1) / TRAIN_PER_FORWARD


def run_hardware_flops(step: TrainStep, vocab: int, recompute: Recompute) -> int:
    """Return the FLOPs with those of recomputation."""
    train = step.train
    more = recomputed_flops(step.model, vocab, [train.encoder_length], [train.decoder_length], recompute)
    return run_flops(step, vocab) + train.steps * train.batch * more


def useful_run_flops(step: TrainStep, vocab: int, recompute: Recompute) -> tuple[float, float] | None:
    """Return expected FLOPs of a run on real tokens, of model and hardware; None if lengths are the data's.

    Lengths of denoised samples follow from the recipe (paper Table 3), those of pairs and of windows that end
    with their document from the data.
    """
    data = step.train.data
    if not isinstance(data, WindowsRecipe) or data.windows == "bounded":
        return None
    kind_sizes = [corruption.sizes(data.length) for corruption in data.corruptions()]
    # Kinds are drawn uniformly per sample, and sizes within a kind are equally likely.
    sample_count = step.train.steps * step.train.batch
    useful_flops = 0.0
    recomputed = 0.0
    for sizes in kind_sizes:
        sources, targets = ([size[side] for size in sizes] for side in (0, 1))
        share = sample_count / len(kind_sizes) / len(sizes)
        model_flops = useful_train_flops(step.model, vocab, sources, targets)
        useful_flops += share * trained_share(step.train) * model_flops
        recomputed += share * recomputed_flops(step.model, vocab, sources, targets, recompute)
    return useful_flops, useful_flops + recomputed


def useful_train_flops(
    model: ModelRecipe, vocab: int, encoder_lengths: Sequence[int], decoder_lengths: Sequence[int]
) -> int:
    """Training FLOPs spent on real tokens: each sequence counted at its own lengths.

    Args:
        model: The model's shape.
        vocab: Ids of the tokenizer.
        encoder_lengths: Real encoder tokens of each sequence, shape [sequences].
        decoder_lengths: Real decoder tokens of each sequence, same shape.

    Raises:
        ValueError: the two have different lengths.
    """
    s = np.asarray(encoder_lengths, np.int64)
    t = np.asarray(decoder_lengths, np.int64)
    if s.shape != t.shape:
        raise ValueError(f"{s.size} encoder lengths but {t.size} decoder lengths")
    # The count is linear in s, t, s^2, t^2 and st, so their sums replace a loop over sequences.
    sums = (int(moment.sum()) for moment in (s, t, s * s, t * t, s * t))
    return TRAIN_PER_FORWARD * sum(_forward(model, vocab, *sums).values())


def recomputed_flops(
    model: ModelRecipe,
    vocab: int,
    encoder_lengths: Sequence[int],
    decoder_lengths: Sequence[int],
    recompute: Recompute,
) -> int:
    """FLOPs of a training step beyond the model's: what the hardware does more, hence HFU above MFU.

    Fused attention multiplies queries and keys once more in its backward pass, half of attention's forward
    FLOPs. `recompute` adds all of attention's for `attention`, those of both stacks but for each block's last
    product for `full` (in fp32 on a CPU that one, too, which is left out here), and nothing for `none` and
    `selective`, which keeps every product (`OpenBAModel.recompute`). The loss adds nothing.

    Args: as `useful_train_flops`.
    """
    s = np.asarray(encoder_lengths, np.int64)
    t = np.asarray(decoder_lengths, np.int64)
    ss, tt, st = (int(moment.sum()) for moment in (s * s, t * t, s * t))
    width = model.num_heads * model.kv_channels
    attention = 4 * width * (model.encoder_layers * ss + model.decoder_layers * (tt + st))
    extra_attention = {"attention": attention, "none": 0, "selective": 0}
    # Recomputation by parts touches attention at most.
    if recompute != "full":
        return attention // 2 + extra_attention[recompute]
    source_tokens = int(s.sum())
    target_tokens = int(t.sum())
    forward = _forward(model, vocab, source_tokens, target_tokens, ss, tt, st)
    block_tokens = model.encoder_layers * source_tokens + model.decoder_layers * target_tokens
    # torch stops when it has what the backward pass needs, and nobody needs a block's output.
    last_products = 2 * block_tokens * model.d_model * model.ffn_inner
    return attention // 2 + forward["encoder"] + forward["decoder"] - last_products


def _forward(model: ModelRecipe, vocab: int, s: int, t: int, ss: int, tt: int, st: int) -> dict[str, int]:
    # Letters of the formula: model width, attention width, feed-forward width; s source, t target tokens.
    d = model.d_model
    a = model.num_heads * model.kv_channels
    f = model.ffn_inner
    encoder = 8 * s * d * a + 4 * ss * a + 6 * s * d * f  # q, k, v, o; scores and values; SwiGLU
    self_attention = 8 * t * d * a + 4 * tt * a
    cross_attention = 4 * t * d * a + 4 * s * d * a + 4 * st * a  # q, o on t; k, v on s
    return {
        "encoder": model.encoder_layers * encoder,
        "decoder": model.decoder_layers * (self_attention + cross_attention + 6 * t * d * f),
        "head": 2 * t * d * model.padded_vocab(vocab),
    }
