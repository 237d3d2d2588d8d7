"""Path of CUDA devices on meta tensors: every operation exists, with its shapes and dtypes, and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openba.model.attention import attend
from openba.model.blocks import FullAttention
from openba.model.model import OpenBAModel
from openba.model.rows import Rows, first
from openba.recipes.architecture import Architecture

SHAPE = Architecture(
    vocab_size=64, hidden_size=32, kv_channels=16, num_heads=2, ffn_hidden_size=64, num_layers=2,
    num_decoder_layers=2, norm="rmsnorm", sandwich_norm=True,
)  # fmt: skip
SOURCE_LENGTHS, TARGET_LENGTHS = [7, 3, 5], [4, 2, 6]


class Called(TorchDispatchMode):
    """Names of the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def ragged_on_meta(lengths: list[int]) -> Rows:
    """A ragged layout whose tensors are on the meta device; its lengths are known on the host."""
    rows = Rows.ragged(first(torch.tensor(lengths), max(lengths)))
    assert rows.index is not None
    return Rows(rows.lengths, rows.width, rows.positions.to("meta"), rows.index.to("meta"))


def hidden_states(dtype: torch.dtype) -> tuple[Tensor, OpenBAModel, list[str]]:
    """Hidden states of a ragged batch on meta, the model, and the operations forward."""
    with torch.device("meta"):
        model = OpenBAModel(SHAPE).to(dtype)
    source_rows, target_rows = ragged_on_meta(SOURCE_LENGTHS), ragged_on_meta(TARGET_LENGTHS)
    source_ids = torch.zeros(sum(SOURCE_LENGTHS), dtype=torch.int64, device="meta")
    target_ids = torch.zeros(sum(TARGET_LENGTHS), dtype=torch.int64, device="meta")
    with Called() as called:
        encoder_output = model.encode(source_ids, source_rows)
        attention = FullAttention(target_rows, encoder_output, source_rows, dropout=0.1)
        hidden = model.decode(target_ids, target_rows, attention)
    return hidden, model, called.names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_attends_in_one_flash_call_a_layer(dtype: torch.dtype) -> None:
    hidden, model, names = hidden_states(dtype)
    assert (hidden.shape, hidden.dtype) == ((sum(TARGET_LENGTHS), 32), dtype)
    # Two encoder layers, two decoder layers with self- and cross-attention.
    assert names.count("aten::_flash_attention_forward") == 6
    assert not any("scaled_dot_product" in name or "mkldnn" in name for name in names)
    hidden.float().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("lm_head"):
            assert parameter.grad is not None, name
            assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, dtype)


def test_fp32_attends_row_by_row() -> None:
    hidden, _, names = hidden_states(torch.float32)
    assert hidden.dtype == torch.float32
    assert "aten::_flash_attention_forward" not in names


def test_a_padded_layout_is_one_call() -> None:
    rows = Rows.padded(torch.ones(2, 5, dtype=torch.bool))
    meta_rows = Rows(rows.lengths, rows.width, rows.positions.to("meta"))
    query = torch.zeros(10, 2, 16, dtype=torch.bfloat16, device="meta")
    with Called() as called:
        output = attend(query, query, query, meta_rows, meta_rows, causal=True)
    assert output.shape == query.shape
    assert "aten::_flash_attention_forward" not in called.names


@pytest.mark.parametrize("lengths", [[3], [2, 5, 1], [4, 4]], ids=str)
def test_offsets_are_the_rows_borders(lengths: list[int]) -> None:
    rows = Rows.ragged(first(torch.tensor(lengths), max(lengths)))
    assert rows.offsets.dtype == torch.int32
    assert rows.offsets.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert rows.offsets is rows.offsets  # made once a batch, not once a layer
