"""Memory and FLOPs of training an adapter beside frozen weights.

Frozen weights have neither gradients nor moments, and the backward pass multiplies once where it multiplies
twice for trained ones. What the adapter itself computes is left out: about 1 % at rank 16.
"""

from __future__ import annotations

from typing import Literal

from openba.accounting.flops import parameters
from openba.accounting.memory import Precision, state_bytes
from openba.recipes.adapter import AdapterRecipe, adapter_parameters, target_shapes
from openba.recipes.model import ModelRecipe

Stored = Literal["bf16", "int8", "nf4"]
LINEAR_BYTES: dict[Stored, float] = {"bf16": 2.0, "int8": 1.0, "nf4": 0.516}
"""Bytes of a number of the blocks' linear layers; nf4: 4 bits and scales, which are quantised too (arXiv
2305.14314, section 3). Embedding, norms and biases stay in bf16."""


def adapter_state_bytes(
    model: ModelRecipe,
    adapter: AdapterRecipe,
    vocab: int,
    *,
    zero_stage: Literal[0, 1, 2, 3],
    data_parallel: int,
    precision: Precision,
) -> int:
    """Return bytes of frozen weights and of the adapter's state on one device."""
    weight_width = 4 if precision == "fp32" else 2
    parameter_count = sum(parameters(model, vocab).values())
    frozen_bytes = -(-weight_width * parameter_count // (data_parallel if zero_stage == 3 else 1))
    trained_state = state_bytes(
        adapter_parameters(model, adapter),
        zero_stage=zero_stage,
        data_parallel=data_parallel,
        precision=precision,
        fp32_gradients=precision == "bf16",
    )
    return frozen_bytes + trained_state["total"]


def frozen_bytes(model: ModelRecipe, vocab: int, stored: Stored) -> int:
    """Return bytes of the whole model's frozen weights in a form of storage."""
    parameter_count = sum(parameters(model, vocab).values())
    every_layer = AdapterRecipe(kind="lora")
    linear_count = sum(inputs * outputs for inputs, outputs in target_shapes(model, every_layer))
    return round(2 * (parameter_count - linear_count) + LINEAR_BYTES[stored] * linear_count)


def adapter_note(
    model: ModelRecipe, adapter: AdapterRecipe, vocab: int, chosen_bytes: int, precision: Precision
) -> str:
    """Return a line for a reader of the plan: the trained share, and the memory by storage of the weights.

    Args:
        model: the shape.
        adapter: what is trained.
        vocab: ids of the tokenizer.
        chosen_bytes: all of a device's memory as planned, its weights in `precision`.
        precision: of the training.
    """
    parameter_count = sum(parameters(model, vocab).values())
    trained_count = adapter_parameters(model, adapter)
    weight_width = 4 if precision == "fp32" else 2
    other_bytes = chosen_bytes - weight_width * parameter_count
    stored_forms: tuple[Stored, ...] = ("bf16", "int8", "nf4")
    needed_memory = ", ".join(
        f"{(other_bytes + frozen_bytes(model, vocab, form)) / 2**30:.1f} in {form}" for form in stored_forms
    )
    trained_percent = f"{trained_count / parameter_count:.2%}"
    return (
        f"{adapter.kind} of rank {adapter.rank} trains {trained_count:,} numbers, {trained_percent} of the "
        f"model; GiB on one device with all frozen weights {needed_memory} (int8 and nf4: QLoRA, planned "
        "only)"
    )
