"""The predicted step against published trainings, and how it moves with what it depends on."""

from __future__ import annotations

import pytest

from openba.accounting.counts import count_model, share_of
from openba.accounting.roofline import (
    ATTENTION_PASSES,
    ATTENTION_SHARE,
    FUSED_SHARE,
    GRADIENT_BYTES,
    StepTime,
    all_reduce_seconds,
    memory_bandwidth,
    predict,
    product_seconds,
)
from openba.config import CONFIGS, load
from openba.recipes.architecture import Architecture
from openba.recipes.model import ModelRecipe
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainRecipe, TrainStep


def tokens_per_second(
    *, width: int, heads: int, inner: int, layers: int, vocab: int, ranks: int, length: int, rows: int
) -> float:
    """Of one A100 that trains a decoder-only model: our encoder block is its block, with the same kernels."""
    device = load(CONFIGS / "runtime" / "paper.yaml", PipelineRuntime).device
    shape = Architecture(
        vocab_size=vocab, hidden_size=width, kv_channels=width // heads, num_heads=heads,
        ffn_hidden_size=-(-3 * inner // 2), ffn_multiple=inner, num_layers=1, num_decoder_layers=1,
        norm="rmsnorm", max_seq_length=length, decoder_max_seq_length=length,
    )  # fmt: skip
    counted = count_model(share_of(shape, ranks), (length,) * rows, (length,) * rows)
    bandwidth = memory_bandwidth(device)
    tokens = rows * length
    parameters = layers * (4 * width * width + 3 * width * inner) + vocab * width
    attention = ATTENTION_PASSES * 4 * width / ranks * layers * rows * length * length / 2
    seconds = (
        layers * product_seconds(counted.encoder_block.products, device)
        + layers * FUSED_SHARE * counted.encoder_block.other_bytes / bandwidth
        + product_seconds(counted.rest.products, device)
        + counted.rest.other_bytes / bandwidth
        + attention / (ATTENTION_SHARE * device.peak_tflops * 1e12)
        + all_reduce_seconds(2 * width * tokens * 4 * layers, ranks, device.link_bandwidth)
        + GRADIENT_BYTES[1] * parameters / ranks / bandwidth
    )
    return tokens / ranks / seconds


def test_llama_65b() -> None:
    """380 tokens/s a GPU on 2,048 A100 of 80 GB (arXiv 2302.13971, section 2.4); it tells no split."""
    found = tokens_per_second(
        width=8192, heads=64, inner=22016, layers=80, vocab=32000, ranks=8, length=2048, rows=4
    )
    assert found == pytest.approx(380, rel=0.15)


def test_megatron_22b() -> None:
    """1.10 s for 4 sequences of 2,048 tokens on 8 A100 (arXiv 2205.05198, Table 5); 16/3 of the width, gated,
    has the FLOPs of its 4 widths."""
    found = tokens_per_second(
        width=6144, heads=64, inner=16384, layers=48, vocab=51200, ranks=8, length=2048, rows=4
    )
    assert found == pytest.approx(4 * 2048 / 1.10 / 8, rel=0.15)


def paper(*changes: str, runtime: str = "paper") -> StepTime:
    recipe = TrainStep(
        model=load(CONFIGS / "model" / "openba-15b.yaml", ModelRecipe),
        train=load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe),
        part="stage1",
    )
    chosen = load(CONFIGS / "runtime" / f"{runtime}.yaml", PipelineRuntime, list(changes))
    return predict(recipe, chosen, 250_203)


def test_what_makes_a_step_faster() -> None:
    preset = paper()
    assert preset.seconds == pytest.approx(
        preset.micro_batches * sum(preset.micro_batch.values()) + sum(preset.once.values())
    )
    assert preset.seconds < paper("train.compile=false").seconds
    assert preset.seconds < paper("train.batches=padded").seconds
    assert preset.seconds < paper("train.micro_batch=4").seconds
    assert preset.seconds < paper("tensor_parallel=8").seconds
    assert preset.seconds < paper("train.zero_stage=2").seconds
    assert preset.useful_mfu < preset.padded_mfu
    assert preset.limit in {*preset.micro_batch, *preset.once}


def test_recomputing_blocks_costs_their_forward_pass_but_for_the_last_product() -> None:
    kept, again = paper(), paper("train.recompute=full")
    products = again.micro_batch["products"] / kept.micro_batch["products"]
    # A block's last product is 22 % of its forward FLOPs in the encoder, 17 % in the decoder.
    assert 1 + 0.78 / 3 < products < 1 + 0.87 / 3
    for part, least in {"elementwise": 4 / 3, "attention": 4.5 / 3.5, "tensor parallel": 1.25}.items():
        assert again.micro_batch[part] >= least * kept.micro_batch[part] - 1e-12
    assert again.micro_batch["head"] == kept.micro_batch["head"]
    assert kept.seconds < paper("train.recompute=selective", "train.compile=false").seconds < again.seconds


def test_h100s_are_faster_than_a100s_and_less_well_used() -> None:
    eight = "devices=8", "train.workers=8", "evaluate.workers=8"
    hopper, ampere = paper(runtime="h100x8"), paper(*eight)
    assert hopper.seconds < ampere.seconds
    assert hopper.useful_mfu < ampere.useful_mfu
