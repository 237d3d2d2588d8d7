"""Figures of a logged step beside its loss: speed, share of the peak, waiting, memory.

Owns their definitions. Padded figures count every sample at the recipe's full lengths, as a trainer that pads
would compute them and as others report them; useful ones count each sample at its own length.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from openba.accounting.flops import recomputed_flops, train_flops, trained_share, useful_train_flops
from openba.json_types import JsonObject
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainStep
from openba.train.batches import Batch


class Meter:
    """Figures of one run's steps, from what all workers did and what one waited."""

    def __init__(self, recipe: TrainStep, vocab: int, runtime: PipelineRuntime, world_size: int) -> None:
        self.model = recipe.model
        self.vocab = vocab
        self.kind = runtime.device.kind
        self.recompute = runtime.train.recompute
        train = recipe.train
        self.peak = runtime.device.peak_tflops * 1e12 * world_size
        self.padded_tokens = train.tokens_per_step
        self.trained_share = trained_share(train)
        sequence_flops = train_flops(self.model, vocab, train.encoder_length, train.decoder_length)
        self.padded_flops = train.batch * sequence_flops * self.trained_share
        self._process = psutil.Process()

    def flops(self, batches: list[Batch]) -> tuple[float, float]:
        """FLOPs of this worker's batches, each sample at its own lengths: the model's, the hardware's."""
        # Real lengths: padding and packing change no figure.
        batch_lengths = [batch.lengths for batch in batches]
        source_lengths = [count for encoder, _ in batch_lengths for count in encoder]
        target_lengths = [count for _, decoder in batch_lengths for count in decoder]
        all_trained = useful_train_flops(self.model, self.vocab, source_lengths, target_lengths)
        model_flops = all_trained * self.trained_share
        recomputed = recomputed_flops(self.model, self.vocab, source_lengths, target_lengths, self.recompute)
        return float(model_flops), float(model_flops + recomputed)

    def row(
        self, seconds: float, tokens: int, flops: float, data_seconds: float, stall_seconds: float
    ) -> JsonObject:
        """Return the figures of a step.

        Args:
            seconds: from the end of the step before to the end of this one, saves and measurements left out.
            tokens: real tokens of all workers.
            flops: the model's, over all workers.
            data_seconds: of them, what this worker waited for its batches.
            stall_seconds: seconds that training has waited for checkpoints since the last logged step.
        """
        figures = {
            "tokens_per_second": tokens / seconds,
            "padded_tokens_per_second": self.padded_tokens / seconds,
            "tflops": flops / seconds / 1e12,
            "data_wait": data_seconds / seconds,
            "checkpoint_stall": stall_seconds,
            "memory_gb": self._memory() / 1e9,
        }
        # A device without a known peak has no utilisation, rather than a wrong one.
        if self.peak > 0:
            figures["mfu_useful"] = flops / seconds / self.peak
            figures["mfu_padded"] = self.padded_flops / seconds / self.peak
        return figures

    def _memory(self) -> int:
        """Bytes: the device's peak, or what this process holds."""
        return torch.cuda.max_memory_allocated() if self.kind == "cuda" else self._process.memory_info().rss


def is_out_of_memory(error: Exception) -> bool:
    """Whether host or device had no memory left; torch's CPU allocator says so in words only."""
    has_type = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return has_type or "can't allocate memory" in str(error) or "bad_alloc" in str(error)


def leave_memory(folder: Path, rank: int) -> Path:
    """Write what held the memory to `debug/memory-00000.txt`; returns the file."""
    report_file = folder / "debug" / f"memory-{rank:05d}.txt"
    report_file.parent.mkdir(parents=True, exist_ok=True)
    host_memory = f"{psutil.Process().memory_full_info()}\n{psutil.virtual_memory()}\n"
    report_file.write_text(host_memory + (torch.cuda.memory_summary() if torch.cuda.is_available() else ""))
    return report_file
