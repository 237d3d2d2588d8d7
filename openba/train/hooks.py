"""Hooks of a training: what happens around its optimiser steps.

Owns the interface, `Hook`, and the hooks that every training has, each of one purpose. A hook sees the public
`Trainer`; tests and benchmarks add their own.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch.distributed as dist
from safetensors.torch import save_file

from openba.json_types import JsonObject
from openba.train.batches import Batch
from openba.train.guard import BAD_STEPS, SPIKE_WINDOW
from openba.train.heldout import HeldOut
from openba.train.log import EVENTS, HELDOUT, METRICS
from openba.train.meter import Meter
from openba.train.profile import Profile
from openba.train.replicas import differing
from openba.train.source_use import alarms
from openba.train.steps import FinishedStep
from openba.train.stopping import Preempted, StopRequest
from openba.train.watchdog import Watchdog

if TYPE_CHECKING:
    from openba.train.trainer import Trainer


class UntrustedWeightsError(Exception):
    """The weights after a step are not to be trusted; the trainer rolls back."""


class Hook:
    """An observer of a training; every method does nothing unless a subclass says otherwise.

    All workers have the same hooks in the same order, and each method is called on all of them, so a method
    may use collectives.
    """

    def on_phase(self, phase: str) -> None:
        """Note that this worker begins `data`, `step`, `evaluate`, `save` or `rehearse`."""

    def on_start(self, trainer: Trainer) -> None:
        """Act before the first step of a new training; a resumed one does not call it."""

    def counts(self, micro_batches: list[Batch]) -> dict[str, float]:
        """Return numbers of this worker's batches; `FinishedStep.counts` has their sums over workers."""
        return {}

    def flags(self) -> dict[str, bool]:
        """Return what this worker has to tell the others; the names are the same on all workers."""
        return {}

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Act after an optimiser step.

        Raises:
            UntrustedWeightsError: the trainer is to roll back; later hooks do not see the step.
        """

    def before_end(self, trainer: Trainer) -> None:
        """Act after the last step, before the output is written."""

    def close(self) -> None:
        """Release what the hook holds, also after an error."""


class LogHook(Hook):
    """Sum the totals of every step, and write rows of `metrics.jsonl`."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._logged_stall = 0.0
        self._step_began = time.perf_counter()

    def on_phase(self, phase: str) -> None:
        """Start the clock of a step where its batches are asked for."""
        if phase == "data":
            self._step_began = time.perf_counter()

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Write a row if one is due, and at every checkpoint, so that a resumed run's rows have no gap."""
        seconds = time.perf_counter() - self._step_began
        step_totals = {**finished.counts, **asdict(finished.figures)}
        trainer.totals = {key: total + step_totals[key] for key, total in trainer.totals.items()}
        train_runtime = trainer.runtime.train
        cadences = (train_runtime.log_every, train_runtime.checkpoint_every, trainer.recipe.steps)
        if any(finished.step % cadence == 0 for cadence in cadences):
            self._write_row(trainer, finished, seconds)

    def _write_row(self, trainer: Trainer, finished: FinishedStep, seconds: float) -> None:
        # Rows may lie several steps apart; each has the stall since the row before.
        stall_seconds = trainer.checkpoints.stall - self._logged_stall
        self._logged_stall += stall_seconds
        figures = finished.figures
        flops = finished.counts["flops"]
        row = {
            **asdict(figures),
            **{f"loss_{mode}": loss for mode, loss in finished.mode_losses.items()},
            **self.meter.row(seconds, figures.tokens, flops, finished.data_seconds, stall_seconds),
            "failed_saves": trainer.checkpoints.failures,
            "totals": trainer.totals,
            "time": time.time(),
            "attempt": trainer.log.attempt,
            "attempt_seconds": trainer.log.seconds,
        }
        trainer.log.write(METRICS, row)


class MeterHook(Hook):
    """Count FLOPs of every step."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def counts(self, micro_batches: list[Batch]) -> dict[str, float]:
        """Return the model's FLOPs of this worker's real tokens, and the hardware's with recomputation."""
        flops, hardware_flops = self.meter.flops(micro_batches)
        return {"flops": flops, "hardware_flops": hardware_flops}


class GuardHook(Hook):
    """Write the guard's verdicts, and ask for a roll-back where the weights are not trusted."""

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """See `Hook.after_step`."""
        step_outcome = finished.outcome
        if step_outcome.skipped_because:
            # JSON has no NaN and no infinity; here it matters which of them a loss was.
            losses = [loss if math.isfinite(loss) else str(loss) for loss in finished.verdict.losses]
            trainer.log.event(
                "skipped",
                finished.step,
                reason=step_outcome.skipped_because,
                losses=losses,
                samples=trainer.batches.items(finished.data_step),
            )
        if step_outcome.spike is not None:
            trainer.log.event("spike", finished.step, **asdict(step_outcome.spike))
        if trainer.guard.must_roll_back:
            write_bundle(trainer, finished)
            raise UntrustedWeightsError(f"{BAD_STEPS} bad steps in a row")
        is_due = finished.step % trainer.runtime.train.compare_every == 0
        if is_due and (difference := differing(trainer.engine)):
            raise UntrustedWeightsError(difference)


class RefusedSamplesHook(Hook):
    """Write an event on samples that no worker could use."""

    def counts(self, micro_batches: list[Batch]) -> dict[str, float]:
        """Return how many samples this worker has refused."""
        return {"refused": float(sum(len(batch.refused) for batch in micro_batches))}

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Gather the samples of all workers."""
        if not finished.counts["refused"]:
            return
        # Only where the count says so: gathering objects takes two collectives and a pickle.
        own_samples = [sample for batch in finished.micro_batches for sample in batch.refused]
        samples_by_rank: list[list[int]] = [[] for _ in range(trainer.engine.world)]
        dist.all_gather_object(samples_by_rank, own_samples)
        samples = sorted(set(itertools.chain(*samples_by_rank)))
        trainer.log.event("samples refused", finished.step, samples=samples)


class ProfileHook(Hook):
    """Profile three steps, if the runtime asks for it."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Begin or end the profile."""
        self.profile.done(finished.step)

    def close(self) -> None:
        """Write what was profiled."""
        self.profile.end()


class MeasureHook(Hook):
    """Measure the held-out loss before, during and after training."""

    def __init__(self, heldout: HeldOut, label_entropies: Mapping[str, float]) -> None:
        self.heldout = heldout
        self.label_entropies = label_entropies

    def on_start(self, trainer: Trainer) -> None:
        """Measure before the first step."""
        self._measure(trainer, 0)

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Measure if it is due, and after the last step."""
        is_last = finished.step == trainer.recipe.steps
        if finished.step % trainer.recipe.evaluate_every == 0 or is_last:
            self._measure(trainer, finished.step)

    def _measure(self, trainer: Trainer, step: int) -> None:
        trainer.begin_phase("evaluate")
        figures = self.heldout.measure(trainer.engine)
        trainer.log.write(HELDOUT, {"step": step, "tokens": trainer.totals["tokens"], **figures})
        # After twice the warm-up a training that does not use its source is an alarm, and nothing else.
        is_warm = step > 2 * trainer.recipe.optim.warmup
        if is_warm and (reasons := alarms(figures, self.label_entropies)):
            trainer.log.event("source not used", step, reasons=reasons)


class SaveHook(Hook):
    """Save checkpoints and the weights of kept steps, and try again what a disk refused."""

    def __init__(self, trainer: Trainer) -> None:
        self.checkpoints = trainer.checkpoints

    def flags(self) -> dict[str, bool]:
        """Return whether the save that is being written has failed on this worker."""
        return {"failed save": self.checkpoints.failed}

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Save if it is due or the training stops."""
        step = finished.step
        is_last = step == trainer.recipe.steps
        if step in trainer.recipe.kept:
            trainer.begin_phase("save")
            trainer.note_export(step, trainer.exports.keep(step))
        is_due = step % trainer.runtime.train.checkpoint_every == 0 or step == trainer.retry_step
        # No checkpoint at the last step: the export that follows at once is the output.
        if (finished.flags["stop"] or is_due) and not is_last:
            trainer.save(step)
        elif finished.flags["failed save"]:
            trainer.settle(step)


class StopHook(Hook):
    """End the training after a step, its state saved, when any worker was asked to stop."""

    def __init__(self, request: StopRequest, rank: int) -> None:
        self.request = request
        self.rank = rank

    def flags(self) -> dict[str, bool]:
        """Return whether this worker was asked to stop."""
        return {"stop": self.request.made(self.rank)}

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Stop, unless it was the last step anyhow.

        Raises:
            Preempted: the state is saved; run again to go on.
        """
        if finished.flags["stop"] and finished.step < trainer.recipe.steps:
            self._stop(trainer, finished.step)

    def close(self) -> None:
        """Restore the signal handlers."""
        self.request.close()

    def _stop(self, trainer: Trainer, step: int) -> NoReturn:
        trainer.log.event("stopped", step, saved=trainer.settle(step))
        # No energy: the attempt's meter is read where the training ends, and the next attempt has its own.
        trainer.log.end({}, {})
        # No worker may leave while another still needs it to settle.
        dist.barrier()
        if self.rank == 0:
            self.request.file.unlink(missing_ok=True)
        raise Preempted(f"stopped after step {step} as asked; run it again to go on")


class WatchHook(Hook):
    """Keep the watchdog informed, which ends a worker that stands still."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        watchdog.start()

    def on_phase(self, phase: str) -> None:
        """Tell the watchdog."""
        self.watchdog.beat(phase)

    def close(self) -> None:
        """End the watchdog."""
        self.watchdog.end()


def write_bundle(trainer: Trainer, finished: FinishedStep) -> Path:
    """Write to `debug/step-N` what is needed to look into a step: this worker's batches and the last rows."""
    debug_folder = trainer.log.folder / "debug" / f"step-{finished.step:06d}"
    debug_folder.mkdir(parents=True, exist_ok=True)
    rank = trainer.engine.rank
    save_file(_batch_tensors(finished.micro_batches), debug_folder / f"batches-{rank:05d}.safetensors")
    if rank == 0:
        bundle_report: JsonObject = {
            "step": finished.step,
            "losses": [str(loss) for loss in finished.verdict.losses],
            "events": trainer.log.rows(EVENTS)[-BAD_STEPS:],
            "metrics": trainer.log.rows(METRICS)[-SPIKE_WINDOW:],
            "recipe": trainer.recipe.model_dump(mode="json"),
        }
        (debug_folder / "report.json").write_text(json.dumps(bundle_report, indent=1))
    return debug_folder


def _batch_tensors(batches: Sequence[Batch]) -> JsonObject:
    return {
        f"{number}/{name}": getattr(batch, name).contiguous()
        for number, batch in enumerate(batches)
        for name in ("encoder_ids", "mask", "decoder_ids", "labels")
    }
