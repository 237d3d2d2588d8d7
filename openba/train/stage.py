"""One training step of the pipeline, as each worker of its gang runs it.

Joins model, data, engine, loop and checkpoints; owns what happens around an optimiser step
(log, measure, save) and what is exported at the end. It is the same for Stage I, II, III and
every expert; which one it is follows from the recipe and the inputs.

Inputs: `tokenizer`; `data` (a mixture or a mix of task pairs); `start` (an exported model to
begin from), absent for Stage I. Output: `model/`, `metrics.jsonl`, `heldout.jsonl`.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from openba.accounting.energy import EnergyMeter
from openba.accounting.flops import parameters, run_flops
from openba.artifacts import Build
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.files import load_weights, restore, save_model
from openba.model.model import OpenBAModel
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainStep
from openba.train.batches import TrainingBatches, training_samples
from openba.train.checkpoint import Checkpoints, everywhere, reader
from openba.train.engine import Engine
from openba.train.heldout import HeldOut
from openba.train.log import ATTEMPTS, HELDOUT, METRICS, StageLog
from openba.train.loop import StepInfo, training_steps


def build(build: Build) -> dict[str, Any]:
    """Train on this worker until the budget is spent; rank 0's facts are the step's."""
    return _Stage(build).run()


class _Stage:
    def __init__(self, build: Build) -> None:
        self.recipe: TrainStep = build.recipe
        self.runtime: PipelineRuntime = build.runtime
        self.out, self.train = build.out, self.recipe.train
        if self.runtime.tensor_parallel != 1:
            raise UserError(
                f"runtime.tensor_parallel: {self.runtime.tensor_parallel} is planned with but not built yet; "
                "train with 1 and a higher runtime.train.zero_stage"
            )
        torch.set_num_threads(self.runtime.train.threads)
        torch.manual_seed(self.train.seed)
        self.tokenizer_folder = build.inputs["tokenizer"]
        self.tokenizer = Tokenizer.load(self.tokenizer_folder)
        self.model = self._model(build.inputs.get("start"))
        self.engine = Engine(self.model, self.train, self.runtime.train, self.runtime.device)
        part = "stage2" if self.train.data.objective == "prefix" else "stage1"
        samples = training_samples(self.train, build.inputs["data"], part, self.tokenizer)
        self.batches = TrainingBatches(samples, self.train, self.tokenizer.pad)
        micro = self.runtime.train.micro_batch
        self.heldout = HeldOut(self.train, build.inputs["data"], self.tokenizer, micro)
        self.log = StageLog(self.out, enabled=self.engine.rank == 0)
        self.totals = {"tokens": 0, "targets": 0, "skipped": 0}  # of every step, logged or not
        self.checkpoints = Checkpoints(self.out / "checkpoints", self.runtime.train.keep_checkpoints)

    def run(self) -> dict[str, Any]:
        start = self._resume()
        clock = time.perf_counter()
        with EnergyMeter() as meter:
            if start == 0:
                self._measure(0)
            micro = self.runtime.train.micro_batch
            for info in training_steps(self.engine, self.batches, self.train, micro, start):
                self._log(info, clock)
                self._after(info)
                clock = time.perf_counter()
        self.checkpoints.settle(self.engine)
        self.log.end(meter.joules())
        return self._finish()

    def _after(self, info: StepInfo) -> None:
        last = info.step == self.train.steps
        if info.step % self.train.evaluate_every == 0 or last:
            self._measure(info.step)
        # No checkpoint at the last step: the export that follows at once is the output.
        if info.step % self.runtime.train.checkpoint_every == 0 and not last:
            self.checkpoints.save(self.engine, info.step)

    def _model(self, start: Path | None) -> OpenBAModel:
        model = OpenBAModel(self.recipe.model.architecture(self.tokenizer.size))
        if start is not None:
            restore(model, load_weights(start / "model"), start)
        return model

    def _resume(self) -> int:
        """Step to go on from."""
        found = self.checkpoints.newest(self.engine.rank, self.engine.world, everywhere(self.engine))
        step = 0
        if found is not None:
            record, read = reader(found)
            self.engine.restore(read, record)
            step = record["step"]
        self.log.begin(step)
        dist.barrier()
        if rows := self.log.rows(METRICS):
            self.totals = rows[-1]["totals"]
        return step

    def _log(self, info: StepInfo, clock: float) -> None:
        self.totals = {key: total + getattr(info, key) for key, total in self.totals.items()}
        # At every checkpoint too, so that a resumed run finds the totals there.
        cadence = (self.runtime.train.log_every, self.runtime.train.checkpoint_every, self.train.steps)
        if any(info.step % steps == 0 for steps in cadence):
            seconds = time.perf_counter() - clock
            row = asdict(info) | {"tokens_per_second": info.tokens / seconds, "time": time.time()}
            self.log.write(METRICS, row | {"totals": self.totals})

    def _measure(self, step: int) -> None:
        self.log.write(HELDOUT, {"step": step, **self.heldout.measure(self.engine)})

    def _finish(self) -> dict[str, Any]:
        weights = self.engine.weights()
        dist.barrier()
        if self.engine.rank != 0:
            return {}
        save_model(self.out / "model", weights, self.model.architecture, self.tokenizer)
        shutil.rmtree(self.checkpoints.folder, ignore_errors=True)
        return self._facts()

    def _facts(self) -> dict[str, Any]:
        steps, heldout, attempts = (self.log.rows(name) for name in (METRICS, HELDOUT, ATTEMPTS))
        return {
            "parameters": sum(parameters(self.recipe.model, self.tokenizer.size).values()),
            "vocab": self.model.architecture.vocab_size,
            "steps": self.train.steps,
            "epochs": round(self.batches.epochs(self.train.steps), 3),
            "tokens": self.totals["tokens"],
            "target_tokens": self.totals["targets"],
            "skipped_steps": self.totals["skipped"],
            "final_loss": steps[-1]["loss"],
            "heldout": heldout,
            "heldout_loss": heldout[-1]["loss"],
            "workers": self.engine.world,
            "training_seconds": sum(row["seconds"] for row in attempts),
            "resumed": len(attempts) - 1,
            "flops": run_flops(self.recipe, self.tokenizer.size),
            "energy_joules": _sum_energy([row.get("joules") for row in attempts]),
        }


def _sum_energy(attempts: list[dict[str, float | None] | None]) -> dict[str, float | None]:
    """Joules per domain over all attempts; None where one of them was not measured to its end."""
    domains = {domain for joules in attempts for domain in joules or {}}
    read = {domain: [(joules or {}).get(domain) for joules in attempts] for domain in sorted(domains)}
    return {
        d: None if None in values else sum(v for v in values if v is not None) for d, values in read.items()
    }
