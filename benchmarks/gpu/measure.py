"""Group `gpu`: what one GPU measures of the model in some minutes, most telling rows first.

`python -m benchmarks gpu` runs it. A bare machine without typer runs `python -m benchmarks.gpu.measure`:
torch and numpy are enough, and transformers gives the peer. A JSON object a line, flushed as it comes, so
that minutes that end early are not lost. `--device cpu --small` runs the same code on a CPU, attention by its
plain reference. No GPU has run it yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from openba.model.decoding import greedy
from openba.model.device_code import cuda_code_everywhere
from openba.model.flat_batch import FlatBatch
from openba.model.functions import rms_norm, rotary_table, rotate, swiglu
from openba.model.loss import IGNORE
from openba.model.model import OpenBAModel
from openba.model.rows import first
from openba.recipes.architecture import Architecture

PAPER = Architecture(
    vocab_size=250_368, hidden_size=4096, kv_channels=128, num_heads=40, ffn_hidden_size=16384,
    num_layers=12, num_decoder_layers=36, norm="rmsnorm", sandwich_norm=True, scale_embedding=True,
    initializer_range=4096**-0.5,
)  # fmt: skip
SMALL = Architecture(
    vocab_size=512, hidden_size=64, kv_channels=16, num_heads=4, ffn_hidden_size=256, num_layers=2,
    num_decoder_layers=3, norm="rmsnorm", sandwich_norm=True, scale_embedding=True, initializer_range=0.125,
)  # fmt: skip
STAGE_ONE = [(513, 114), (496, 97), (429, 144), (381, 380), (322, 321), (486, 87), (290, 289)]
"""Encoder and target tokens of Stage I's denoisers (paper Table 3), of windows of 568 tokens."""
Row = dict[str, object]


@dataclass(frozen=True)
class Machine:
    """Where and how large the rows are measured."""

    device: torch.device
    small: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait for what was launched."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], rounds: int = 5) -> float:
        """Median seconds of a call, after one that is not counted."""
        run()
        self.wait()
        seconds = []
        for _ in range(1 if self.small else rounds):
            started = time.perf_counter()
            run()
            self.wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def model(self, architecture: Architecture, dtype: torch.dtype = torch.bfloat16) -> OpenBAModel:
        """Return a model with random weights, in training mode."""
        torch.manual_seed(0)
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # fp32 weights of the 15B model would not fit beside its gradients
        try:
            with self.device:
                return OpenBAModel(architecture).train()
        finally:
            torch.set_default_dtype(previous)


def measure(device: str, small: bool) -> Iterator[Row]:
    """Yield all rows; a row that fails says why, and the others follow."""
    machine = Machine(torch.device(device), small)
    with ExitStack() as stack:
        if not machine.on_gpu:
            from tests.harness.flash_on_cpu import flash_attention_on_cpu

            stack.enter_context(flash_attention_on_cpu())
            stack.enter_context(cuda_code_everywhere())
        ceilings: Row = {}
        for part in (
            _ceilings,
            _numerics,
            _training_slice,
            _whole_model,
            _kernels,
            _decoding,
            _attention_shapes,
        ):
            started = time.perf_counter()
            try:
                for row in part(machine, ceilings):
                    ceilings |= row if part is _ceilings else {}
                    yield {"part": part.__name__[1:], **row}
            except (RuntimeError, ImportError, AssertionError, ValueError) as error:
                yield {"part": part.__name__[1:], "error": " ".join(str(error).split())[:300]}
            yield {"part": part.__name__[1:], "seconds": time.perf_counter() - started}


def _ceilings(machine: Machine, ceilings: Row) -> Iterator[Row]:
    """Products and copies at their best: what the other rows are compared with."""
    size = 256 if machine.small else 8192
    left = torch.randn(size, size, dtype=torch.bfloat16, device=machine.device)
    product_seconds = machine.seconds(lambda: left @ left)
    large = torch.empty((2**20 if machine.small else 2**30), dtype=torch.bfloat16, device=machine.device)
    copy_seconds = machine.seconds(large.clone)
    name = torch.cuda.get_device_name() if machine.on_gpu else "cpu"
    yield {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "product_tflops": 2 * size**3 / product_seconds / 1e12,
        "copy_gb_per_second": 2 * large.numel() * large.element_size() / copy_seconds / 1e9,
    }


def _batch(machine: Machine, vocab: int, samples: int, padded: bool = False) -> FlatBatch:
    """Draw samples of Stage I's lengths, a tenth as long where small; in host memory."""
    scale = 10 if machine.small else 1
    lengths = [(s // scale, t // scale) for s, t in (STAGE_ONE * samples)[:samples]]
    generator = torch.Generator().manual_seed(0)
    widths = (570 // scale, 380 // scale)
    masks = [
        first(torch.tensor(side), width)
        for side, width in zip(zip(*lengths, strict=True), widths, strict=True)
    ]
    encoder_ids, targets = (torch.randint(3, vocab, mask.shape, generator=generator) for mask in masks)
    labels = targets.masked_fill(~masks[1], IGNORE)
    decoder_ids = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], 1)
    return FlatBatch.lay_out(encoder_ids, masks[0], decoder_ids, labels, vocab=vocab, padded=padded)


def _numerics(machine: Machine, ceilings: Row) -> Iterator[Row]:
    """Loss and gradients in bf16 against fp32 on the CPU; on a GPU any synchronisation is an error."""
    half = machine.model(SMALL)
    exact = OpenBAModel(SMALL)
    exact.load_state_dict({name: weight.float().cpu() for name, weight in half.state_dict().items()})
    small = replace(machine, small=True)
    batch = _batch(small, SMALL.vocab_size, 7)
    on_device = batch.to(machine.device)
    half(on_device)  # makes the table of angles
    scale = torch.full((), 1e-2, device=machine.device)
    if machine.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        loss = half(on_device, gradient_scale=scale) * scale
        loss.backward()
    finally:
        if machine.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    expected = exact(batch) * 1e-2
    expected.backward()
    gradients = [
        torch.cat([p.grad.float().cpu().flatten() for p in model.parameters() if p.grad is not None])
        for model in (half, exact)
    ]
    half_gradient, exact_gradient = gradients
    cosine = torch.nn.functional.cosine_similarity(half_gradient, exact_gradient, dim=0)
    yield {
        "loss": float(loss.detach()),
        "loss_fp32": float(expected.detach()),
        "gradient_cosine": float(cosine),
    }


def _slice(machine: Machine) -> Architecture:
    full_width = replace(PAPER, num_layers=2, num_decoder_layers=6, vocab_size=41_728)
    return SMALL if machine.small else full_width


def _train_case(machine: Machine, model: OpenBAModel, batch: FlatBatch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    on_device = batch.to(machine.device)
    scale = torch.full((), 1.0 / len(batch.labels), device=machine.device)

    def run_step() -> None:
        (model(on_device, gradient_scale=scale) * scale).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run_step


def _training_slice(machine: Machine, ceilings: Row) -> Iterator[Row]:
    """Measure steps of 2 + 6 full-width layers, padded, packed and compiled, beside transformers' T5."""
    architecture = _slice(machine)
    for name, padded, compiled in (
        ("padded", True, False),
        ("packed", False, False),
        ("compiled", False, True),
    ):
        model = machine.model(architecture)
        if compiled:
            model.compile_blocks("aot_eager" if not machine.on_gpu else "inductor")
        batch = _batch(machine, architecture.vocab_size, 7, padded)
        seconds = machine.seconds(_train_case(machine, model, batch))
        useful_tokens = len(batch.labels) + sum(batch.source_rows.lengths)
        yield {"case": name, "step_seconds": seconds, "useful_tokens_per_second": useful_tokens / seconds}
    yield from _t5(machine, architecture)


def _t5(machine: Machine, architecture: Architecture) -> Iterator[Row]:
    from transformers import T5Config, T5ForConditionalGeneration

    batch = _batch(machine, architecture.vocab_size, 7, padded=True)
    config = T5Config(
        vocab_size=architecture.vocab_size, d_model=architecture.hidden_size, d_kv=architecture.kv_channels,
        d_ff=architecture.ffn_inner, num_layers=architecture.num_layers, num_heads=architecture.num_heads,
        num_decoder_layers=architecture.num_decoder_layers, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).train()
    cast(nn.Module, model).to(machine.device, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    rows = len(batch.source_rows.lengths)
    encoder_ids = batch.encoder_ids.view(rows, -1).to(machine.device)
    decoder_ids = batch.decoder_ids.view(rows, -1).to(machine.device)
    mask = batch.source_rows.mask.long().to(machine.device)

    def run_step() -> None:
        inputs = {"input_ids": encoder_ids, "attention_mask": mask}
        model(**inputs, decoder_input_ids=decoder_ids, labels=decoder_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = machine.seconds(run_step)
    useful_tokens = len(batch.labels) + sum(batch.source_rows.lengths)
    yield {
        "case": "transformers T5",
        "step_seconds": seconds,
        "useful_tokens_per_second": useful_tokens / seconds,
    }


def _whole_model(machine: Machine, ceilings: Row) -> Iterator[Row]:
    """Forward and backward of the 15B model, four and eight packed micro-batches' worth of samples."""
    model = machine.model(SMALL if machine.small else PAPER)
    model.compile_blocks("aot_eager" if not machine.on_gpu else "inductor")
    scale = torch.full((), 1e-3, device=machine.device)
    for samples in (7, 14):
        batch = _batch(machine, model.architecture.vocab_size, samples).to(machine.device)

        def run_pass(batch: FlatBatch = batch) -> None:
            (model(batch, gradient_scale=scale) * scale).backward()
            model.zero_grad(set_to_none=True)

        seconds = machine.seconds(run_pass, rounds=3)
        flops = 6.0 * sum(
            p.numel() for p in model.parameters()
        )  # a token; attention and heads are in the log
        tokens = len(batch.labels) + sum(batch.source_rows.lengths)
        memory = torch.cuda.max_memory_allocated() if machine.on_gpu else 0
        yield {
            "samples": samples, "seconds": seconds, "tokens_per_second": tokens / seconds,
            "upper_tflops": flops * tokens / seconds / 1e12, "peak_gb": memory / 1e9,
        }  # fmt: skip


def _kernels(machine: Machine, ceilings: Row) -> Iterator[Row]:
    """Elementwise formulas, eager and compiled, as a share of the copy's bandwidth."""
    tokens, width = (64, 64) if machine.small else (8192, 4096)
    hidden = torch.randn(tokens, width, dtype=torch.bfloat16, device=machine.device)
    weight = torch.ones(width, dtype=torch.bfloat16, device=machine.device)
    packed = torch.randn(tokens, 2, 2, 32, dtype=torch.bfloat16, device=machine.device)
    cosines, sines = rotary_table(tokens, 32, 10_000.0, machine.device)
    cases: dict[str, tuple[Callable[..., Tensor], tuple[object, ...], int]] = {
        "rms_norm": (rms_norm, (hidden, weight, 1e-5), 4 * hidden.numel()),
        "swiglu": (swiglu, (hidden,), 3 * hidden.numel()),
        "rotate": (rotate, (packed, cosines[:, None], sines[:, None]), 4 * packed.numel()),
    }
    for name, (function, arguments, moved_bytes) in cases.items():
        for form in ("eager", "compiled") if machine.on_gpu else ("eager",):
            run = torch.compile(function) if form == "compiled" else function
            seconds = machine.seconds(partial(run, *arguments))
            share = moved_bytes / seconds / 1e9 / float(str(ceilings.get("copy_gb_per_second", "nan")))
            yield {"kernel": name, "form": form, "share_of_copy": share}


def _decoding(machine: Machine, ceilings: Row) -> Iterator[Row]:
    """Greedy decoding, as a share of what reading the decoder's weights once a token allows."""
    model = machine.model(SMALL if machine.small else PAPER).eval()
    new_tokens = 8 if machine.small else 64
    decoder_bytes = sum(2 * p.numel() for p in model.decoder.parameters()) + 2 * model.head_weight.numel()
    for rows in (1, 16) if machine.small else (1, 16, 64):
        sources = [list(range(3, 3 + (20 if machine.small else 256)))] * rows
        vocab = model.architecture.vocab_size

        def run(sources: list[list[int]] = sources, vocab: int = vocab) -> int:
            with torch.inference_mode():
                return sum(len(step.tokens) for step in greedy(model, sources, [0], -1, vocab, new_tokens))

        seconds = machine.seconds(run, rounds=2)
        copy_rate = float(str(ceilings.get("copy_gb_per_second", "nan"))) * 1e9
        bound = decoder_bytes / copy_rate * new_tokens
        yield {
            "rows": rows,
            "tokens_per_second": rows * new_tokens / seconds,
            "share_of_bound": bound / seconds,
        }


def _attention_shapes(machine: Machine, ceilings: Row) -> Iterator[Row]:
    """Packed attention over rows of ever new lengths: the first call of each shape against a repeated one."""
    from openba.model.attention import attend
    from openba.model.rows import Rows

    generator = torch.Generator().manual_seed(0)
    count, longest = (4, 12) if machine.small else (50, 900)
    first_seconds: list[float] = []
    again_seconds: list[float] = []
    for _ in range(count):
        lengths = torch.randint(1, longest, (8,), generator=generator)
        rows = Rows.ragged(first(lengths, longest)).to(machine.device)
        query = torch.randn(int(lengths.sum()), 4, 64, dtype=torch.bfloat16, device=machine.device)
        for seconds in (first_seconds, again_seconds):
            started = time.perf_counter()
            attend(query, query, query, rows, rows, causal=True)
            machine.wait()
            seconds.append(time.perf_counter() - started)
    yield {
        "first_ms": 1e3 * statistics.median(first_seconds),
        "again_ms": 1e3 * statistics.median(again_seconds),
    }


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    for row in measure(options.device, options.small):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
