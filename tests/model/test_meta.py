"""Path of CUDA devices on meta tensors: every operation exists, with its shapes and dtypes, and gradients."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openba.model.attention import attend
from openba.model.blocks import FullAttention
from openba.model.cuda.cuda_attention import attend_packed
from openba.model.device_code import cuda_code_everywhere
from openba.model.flat_batch import FlatBatch
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.model.plain_attention import attend_by_row
from openba.model.rows import Rows, first
from openba.recipes.architecture import Architecture
from tests.harness.flash_on_cpu import flash_attention_on_cpu

SHAPE = Architecture(
    vocab_size=64, hidden_size=32, kv_channels=16, num_heads=2, ffn_hidden_size=64, num_layers=2,
    num_decoder_layers=2, norm="rmsnorm", sandwich_norm=True, hidden_dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
SOURCE_LENGTHS, TARGET_LENGTHS = [7, 3, 5], [4, 2, 6]
META = torch.device("meta")
READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"}
"""Operations for which the host waits: their result, or its size, is known by the device only."""


class Called(TorchDispatchMode):
    """Names of the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class NoHost(TorchDispatchMode):
    """Refuses what makes the host wait for the device, and copies of more than a number from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket.__name__ in READS:
            raise AssertionError(f"{func} reads from the device")
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.numel() > 1:
                raise AssertionError(f"{func} copies {list(leaf.shape)} between host and device")
        return result


def batch_of(source_lengths: list[int], target_lengths: list[int], padded: bool = False) -> FlatBatch:
    """A batch of random ids with rows of these lengths, in host memory."""
    mask = first(torch.tensor(source_lengths), max(source_lengths))
    labels = torch.randint(3, SHAPE.vocab_size, (len(target_lengths), max(target_lengths)))
    ids = torch.randint(3, SHAPE.vocab_size, mask.shape)
    labelled = labels.masked_fill(~first(torch.tensor(target_lengths), labels.shape[1]), IGNORE)
    return FlatBatch.lay_out(ids, mask, labels, labelled, vocab=SHAPE.vocab_size, padded=padded)


@pytest.mark.parametrize("recompute", ["none", "attention", "selective", "full"])
@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_training_step_reads_nothing_from_the_device(
    dtype: torch.dtype, padded: bool, recompute: str
) -> None:
    with META:
        model = OpenBAModel(SHAPE).to(dtype).train()
    model.recompute(recompute)  # type: ignore[arg-type]
    batch = batch_of(SOURCE_LENGTHS, TARGET_LENGTHS, padded).to(META)
    model.rotary_angles(META)  # made once a process and device
    with NoHost():
        scale = torch.zeros((), device=META)
        loss = model(batch, gradient_scale=scale) * scale
        loss.backward()
    assert loss.shape == ()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_guard_of_the_test_above_sees_reads_and_copies() -> None:
    rows = Rows.ragged(first(torch.tensor([2, 3]), 3))
    with NoHost(), pytest.raises(AssertionError, match="copies"):
        rows.positions.to(META)
    with NoHost(), pytest.raises(AssertionError, match="reads"):
        torch.zeros(1, dtype=torch.bool).nonzero()


def ragged_on_meta(lengths: list[int]) -> Rows:
    """A ragged layout whose tensors are on the meta device; its lengths are known on the host."""
    return Rows.ragged(first(torch.tensor(lengths), max(lengths))).to(META)


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


@pytest.mark.parametrize(("lengths", "is_flash"), [([5, 5], True), ([5, 3], False)])
def test_a_padded_layout_is_one_call(lengths: list[int], is_flash: bool) -> None:
    """By flash attention if there is no padding; its mask rules that out."""
    meta_rows = Rows.padded(first(torch.tensor(lengths), 5)).to(META)
    query = torch.zeros(10, 2, 16, dtype=torch.bfloat16, device="meta")
    with Called() as called:
        output = attend(query, query, query, meta_rows, meta_rows)
    assert output.shape == query.shape
    attentions = [name for name in called.names if "attention" in name]
    assert ("aten::_flash_attention_forward" in attentions) is is_flash


@pytest.mark.parametrize("lengths", [[3], [2, 5, 1], [4, 4]], ids=str)
def test_offsets_are_the_rows_borders(lengths: list[int]) -> None:
    rows = Rows.ragged(first(torch.tensor(lengths), max(lengths)))
    assert rows.offsets.dtype == torch.int32
    assert rows.offsets.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert rows.offsets is rows.offsets  # made once a batch, not once a layer


row_lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(lengths=row_lengths, kind=st.sampled_from(["self", "causal", "cross"]), seed=st.integers(0, 9))
def test_one_call_for_all_rows_is_one_call_a_row(
    lengths: list[tuple[int, int]], kind: str, seed: int
) -> None:
    layouts = [Rows.ragged(first(torch.tensor(side), max(side))) for side in zip(*lengths, strict=True)]
    query_rows, key_rows = layouts if kind == "cross" else (layouts[0], layouts[0])
    draw = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(len(rows.positions), 2, 8, generator=draw, dtype=torch.float64, requires_grad=True)
        for rows in (query_rows, key_rows, key_rows)
    ]
    results = []
    with flash_attention_on_cpu():
        for form in (attend_packed, attend_by_row):
            output = form(*parts, query_rows, key_rows, kind == "causal", 0.0)
            results.append((output, *torch.autograd.grad(output.cos().sum(), parts)))
    for packed, by_row in zip(*results, strict=True):
        torch.testing.assert_close(packed, by_row, atol=1e-6, rtol=1e-6)


def test_dropout_keeps_the_mean_and_its_gradient_has_the_same_mask() -> None:
    rows = Rows.ragged(first(torch.tensor([40, 30]), 40))
    query, key, value = (torch.randn(70, 2, 8, dtype=torch.float64) for _ in range(3))
    value.requires_grad_()
    with flash_attention_on_cpu():
        full = attend_packed(query, key, value, rows, rows, False, 0.0)
        torch.manual_seed(1)
        dropped = [attend_packed(query, key, value, rows, rows, False, 0.5) for _ in range(200)]
        assert not torch.equal(dropped[0], dropped[1])
        torch.testing.assert_close(torch.stack(dropped).mean(0), full, atol=0.2, rtol=0)
        # The output is linear in the values: its gradient tells the mask that was applied.
        (gradient,) = torch.autograd.grad(dropped[0].sum(), value)
    torch.testing.assert_close((gradient * value).sum(), dropped[0].sum())


def test_blocks_compile_to_few_graphs_and_the_same_gradients() -> None:
    """Twelve ragged batches: at most two graphs a kind of block, none of which breaks (`fullgraph`)."""
    shape = replace(SHAPE, hidden_dropout=0.0, attention_dropout=0.0, num_decoder_layers=3)
    torch.manual_seed(0)
    plain, compiled = (OpenBAModel(shape).bfloat16() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        nodes = [node for node in graph.graph.nodes if node.op.startswith("call")]
        graphs.extend([len(nodes)] if nodes else [])
        return aot_eager(graph, inputs)

    compiled.compile_blocks(backend)  # type: ignore[arg-type]
    draw = random.Random(0)
    with flash_attention_on_cpu(), cuda_code_everywhere():
        for _ in range(12):
            lengths = [(draw.randint(1, 19), draw.randint(1, 12)) for _ in range(draw.randint(1, 7))]
            batch = batch_of(*map(list, zip(*lengths, strict=True))).to(torch.device("cpu"))
            losses = []
            for model in (plain, compiled):
                model.zero_grad()
                losses.append(model(batch))
                losses[-1].backward()
            torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
            for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
                assert ours.grad is not None
                assert theirs.grad is not None
                torch.testing.assert_close(
                    ours.grad, theirs.grad, rtol=0.05, atol=float(theirs.grad.abs().max()) / 50
                )
    assert len(graphs) <= 4
