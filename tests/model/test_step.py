"""One decoder position: the compiled loops give what torch gives, on any number of threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openba.model.cpu.cpu_step import CompiledStep
from openba.model.model import OpenBAModel
from openba.model.step import BlockStep, Step, make_step
from openba.recipes.architecture import Architecture

POSITIONS = 7


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Small shapes, sizes that fill no vector and no tile among them."""
    return Architecture(
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=draw(st.integers(1, 40)),
        kv_channels=2 * draw(st.integers(1, 10)),
        num_heads=draw(st.integers(1, 3)),
        ffn_hidden_size=draw(st.integers(3, 200)),
        ffn_multiple=draw(st.sampled_from([1, 16])),
        num_layers=1,
        num_decoder_layers=draw(st.integers(1, 3)),
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        sandwich_norm=draw(st.booleans()),
        add_qkv_bias=draw(st.booleans()),
        add_lm_head_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        scale_embedding=draw(st.booleans()),
        initializer_range=0.2,
        max_seq_length=POSITIONS,
        decoder_max_seq_length=POSITIONS,
    )


def build(architecture: Architecture) -> OpenBAModel:
    torch.manual_seed(0)
    model = OpenBAModel(architecture).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p += torch.randn_like(p) * 0.2
    return model


Given = tuple[Tensor, list[int], Tensor, Tensor, list[int]]


def given_to(architecture: Architecture, positions: list[int], lengths: list[int]) -> Given:
    """What a step is called with; one more row than is used lies in the caches."""
    layers, heads, kv = architecture.num_decoder_layers, architecture.num_heads, architecture.kv_channels
    cache, memory = torch.randn(2, layers, 2, len(lengths) + 1, heads, POSITIONS, kv)
    ids = torch.randint(architecture.vocab_size, (len(positions),))
    return ids, positions, cache, memory.contiguous(), lengths


@torch.inference_mode()
def run(step: Step, call: Given) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, the cache afterwards, logits."""
    ids, positions, cache, memory, lengths = call
    cache = cache.clone()
    hidden = step(ids, positions, cache, memory, lengths)
    return hidden, cache, step.logits(hidden)


@given(data=st.data(), architecture=architectures(), alike=st.booleans())
def test_compiled_loops_are_torchs_calls(
    data: st.DataObject, architecture: Architecture, alike: bool
) -> None:
    model = build(architecture)
    rows, place = data.draw(st.integers(1, 9)), st.integers(0, POSITIONS - 1)
    positions = [data.draw(place)] * rows if alike else [data.draw(place) for _ in range(rows)]
    lengths = [data.draw(st.integers(1, POSITIONS)) for _ in range(rows)]
    call = given_to(architecture, positions, lengths)
    for found, expected in zip(run(CompiledStep(model), call), run(BlockStep(model), call), strict=True):
        assert found.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


SHAPE = Architecture(vocab_size=99, hidden_size=48, kv_channels=16, num_heads=3, ffn_hidden_size=96,
                     num_layers=1, num_decoder_layers=2, max_seq_length=POSITIONS)  # fmt: skip


def test_threads_change_no_bit() -> None:
    step, call = make_step(build(SHAPE)), given_to(SHAPE, [3, 0, 6, 2, 2], [1, 7, 4, 2, 3])
    before, threads = run(step, call), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run(step, call)
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: run(step, call), range(40)))
    for found in (alone, *together):
        assert all(map(torch.equal, found, before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_only_fp32_is_compiled(dtype: torch.dtype) -> None:
    model = build(SHAPE).to(dtype)
    step, call = make_step(model), given_to(SHAPE, [3, 0], [1, 7])
    assert isinstance(step, CompiledStep) == (dtype == torch.float32)
    ids, positions, cache, memory, lengths = call
    hidden, _, logits = run(step, (ids, positions, cache.to(dtype), memory.to(dtype), lengths))
    assert hidden.dtype == dtype
    assert logits.dtype == torch.float32


def test_loading_the_loops_leaves_torchs_threads_as_they_were() -> None:
    """In a process of its own: here the loops are loaded."""
    program = """
import torch
from openba.recipes.architecture import Architecture
from openba.model.cpu.cpu_step import CompiledStep
from openba.model.model import OpenBAModel
from openba.model.rows import Rows
from openba.model.step import make_step
for threads in (1, 3):
    torch.set_num_threads(threads)
    model = OpenBAModel(Architecture(vocab_size=9, hidden_size=8, kv_channels=4, num_heads=2,
                                     ffn_hidden_size=16, num_layers=1, num_decoder_layers=1)).eval()
    model.encode(torch.ones(4, dtype=torch.long), Rows.ragged(torch.ones(1, 4, dtype=torch.bool)))
    make_step(model).logits(torch.zeros(2, 8))
    print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "3"]
