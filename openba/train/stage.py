"""One training step of the pipeline, as each worker of its gang runs it.

Joins model, data, engine, loop and checkpoints; owns what happens around an optimiser step
(log, measure, save, stop, roll back) and what is exported at the end. It is the same for Stage I,
II, III and every expert; which one it is follows from the recipe and the inputs.

Inputs: `tokenizer`; `data` (a mixture or a mix of task pairs); `start` (an exported model to
begin from), absent for Stage I. Output: `model/`, `metrics.jsonl`, `heldout.jsonl`, `events.jsonl`. Its
checkpoints stay in `checkpoints/` until the output is in the store (`Kind.scratch`).
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist

from openba.accounting.energy import EnergyMeter, TrainFacts, cost, totals
from openba.accounting.estimate import estimated
from openba.accounting.flops import parameters, run_flops, run_hardware_flops
from openba.artifacts import Build
from openba.errors import UserError
from openba.model.files import fitting, load_weights, weights_folder
from openba.model.model import OpenBAModel
from openba.model.parallel import make_part
from openba.model.parallel_loss import TensorGroup
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainStep, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import Batch, PairSamples, TrainingBatches, training_samples
from openba.train.checkpoint import Checkpoints, everywhere, read_logs, reader
from openba.train.engine import Engine
from openba.train.exports import Exports
from openba.train.finished import finished_facts, leave_finished
from openba.train.groups import make_groups
from openba.train.guard import IN_A_ROW, Guard
from openba.train.heldout import HeldOut
from openba.train.identity import FORMAT, check, identity
from openba.train.lease import Lease
from openba.train.log import ATTEMPTS, HELDOUT, METRICS, StageLog
from openba.train.loop import Step, StepInfo, training_steps
from openba.train.meter import Meter, is_out_of_memory, leave_memory
from openba.train.profile import Profile
from openba.train.rehearsal import rehearse
from openba.train.replicas import differing
from openba.train.source_use import alarms, label_entropies
from openba.train.stopping import Preempted, StopRequest
from openba.train.watchdog import Watchdog

_WORK = ("flops", "hardware_flops")
_LEASE_SECONDS = 10.0
"""How long a group waits for the one before it to be gone."""


def build(build: Build) -> dict[str, Any]:
    """Train on this worker until the budget is spent; rank 0's facts are the step's.

    A training that is finished, but was ended before its output reached the store, is not repeated.
    """
    facts = [finished_facts(build.out, build.recipe, build.inputs) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(facts)
    if facts[0] is not None:
        return facts[0] if dist.get_rank() == 0 else {}
    return _Stage(build).run()


class _Stage:
    def __init__(self, build: Build) -> None:
        self.recipe: TrainStep = build.recipe
        self.runtime: PipelineRuntime = build.runtime
        self.out, self.train = build.out, self.recipe.train
        torch.set_num_threads(self.runtime.train.threads)
        torch.manual_seed(self.train.seed)
        self.tokenizer_folder = build.inputs["tokenizer"]
        self.tokenizer = Tokenizer.load(self.tokenizer_folder)
        groups = make_groups(self.runtime.tensor_parallel)
        self.model = self._model(build.inputs.get("start"), groups.tensor)
        self.engine = Engine(self.model, groups, self.train, self.runtime)
        self._take_lease()
        samples = training_samples(self.train, build.inputs["data"], self.recipe.part, self.tokenizer)
        ids = (self.tokenizer.pad, self.tokenizer.size)
        self.batches = TrainingBatches(samples, self.train, *ids, self.engine.padded)
        micro = self.runtime.train.micro_batch
        self.heldout = HeldOut(self.train, build.inputs["data"], self.tokenizer, micro)
        self.label_entropies = label_entropies(samples.pairs) if isinstance(samples, PairSamples) else {}
        self.log = StageLog(self.out, enabled=self.engine.rank == 0)
        # Of every step, logged or not.
        self.totals: dict[str, float] = dict.fromkeys(("tokens", "targets", "skipped", *_WORK), 0)
        self.checkpoints = Checkpoints(self.out / "checkpoints", self.runtime.train.keep_checkpoints)
        self.exports = Exports(self.out, self.engine, self.model.architecture, self.tokenizer)
        self._saved_logs: dict[str, list[str]] = {}
        """Of the checkpoint that was taken last."""
        self._told_stall = 0.0
        self._try_again = -1
        """Step after which a save that failed is tried again."""
        self.profile = Profile(self.out, self.engine.rank, self.runtime.train.profile_after)
        self.identity = identity(self.recipe, build.inputs)
        self.guard = Guard(self.train, self.log)
        self.meter = Meter(self.recipe, self.tokenizer.size, self.runtime, self.engine.world)
        ul2 = isinstance(self.train.data, UL2Recipe)
        self.modes = {mode: self.tokenizer.mode(mode) for mode in "RSX"} if ul2 else {}
        self.stop = StopRequest(self.out)
        self.watchdog = Watchdog(
            self.out,
            self.engine.rank,
            self.engine.world,
            lambda: self.engine.meetings,
            self.runtime.train.stall_seconds,
        )

    def run(self) -> dict[str, Any]:
        self.watchdog.start()
        try:
            return self._run()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            place = leave_memory(self.out, self.engine.rank)
            raise UserError(
                f"rank {self.engine.rank}: out of memory ({place}); lower runtime.train.micro_batch "
                f"from {self.runtime.train.micro_batch} or raise runtime.train.zero_stage"
            ) from error
        finally:
            self.watchdog.end()
            self.profile.end()
            self.stop.close()
            self.lease.give_back()

    def _run(self) -> dict[str, Any]:
        start: int | None = self._resume()
        first_of_node = os.environ.get("LOCAL_RANK", "0") == "0"  # one meter a node
        country, pue = self.runtime.codecarbon, self.runtime.pue
        with (
            EnergyMeter() if first_of_node else nullcontext() as meter,
            estimated(country, pue) if first_of_node and country else nullcontext() as estimate,
        ):
            if start == 0:
                self._rehearse()
                self._measure(0)
            while start is not None:
                start = self._train(start)
        self._settle(self.train.steps)
        joules = self._of_nodes(meter.joules() if meter else None)
        self.log.end(joules, self._of_nodes(estimate))
        return self._finish()

    def _of_nodes(self, figures: dict[str, float | None] | None) -> dict[str, float | None]:
        """Sums over the nodes, on all ranks; None on a rank that is not its node's first."""
        nodes: list[dict[str, float | None] | None] = [None] * self.engine.world
        dist.all_gather_object(nodes, figures)
        return totals([found for found in nodes if found is not None])

    def _train(self, start: int) -> int | None:
        """Steps from `start`; returns the step to go on from after a roll-back, None at the end."""
        clock = time.perf_counter()
        micro = self.runtime.train.micro_batch
        for step in training_steps(
            self.engine,
            self.batches,
            self.train,
            micro,
            start,
            self.guard,
            self._cost,
            self._signals,
            self.modes,
        ):
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            self._log(step, seconds)
            if (why := self._distrusted(step)) is not None:
                return self._roll_back(step.info.step, why)
            stops, failed, refused = step.signals
            if refused:
                self._tell_refused(step.info.step)
            self.profile.done(step.info.step)
            self._after(step.info, bool(stops), bool(failed))
            self.watchdog.beat("data")
            clock = time.perf_counter()
        return None

    def _cost(self, micro: list[Batch]) -> tuple[float, float]:
        self.watchdog.beat("step")
        return self.meter.flops(micro)

    def _signals(self) -> list[float]:
        """What the workers tell each other in a step: wishes to stop, failed saves, refused samples."""
        told = (self.stop.made(self.engine.rank), self.checkpoints.failed, self.batches.refused)
        return [float(bool(each)) for each in told]

    def _tell_refused(self, step: int) -> None:
        """Samples that no worker could use, told by rank 0."""
        everyone: list[list[int]] = [[] for _ in range(self.engine.world)]
        dist.all_gather_object(everyone, self.batches.refused)
        self.batches.refused = []
        self.log.event("samples refused", step, samples=sorted(set(itertools.chain(*everyone))))

    def _after(self, info: StepInfo, stops: bool, failed: bool) -> None:
        last = info.step == self.train.steps
        if info.step % self.train.evaluate_every == 0 or last:
            self._measure(info.step)
        if info.step in self.train.kept:
            self.watchdog.beat("save")
            self._note_export(info.step, self.exports.keep(info.step))
        # No checkpoint at the last step: the export that follows at once is the output.
        due = info.step % self.runtime.train.checkpoint_every == 0 or info.step == self._try_again
        if (stops or due) and not last:
            self._save(info.step)
        elif failed:
            self._settle(info.step)
        if stops and not last:
            self._leave(info.step)

    def _settle(self, step: int) -> bool:
        self.watchdog.beat("save")
        committed = self.checkpoints.settle(self.engine)
        if not committed:
            self._try_again = step + 2**self.checkpoints.failures
            self.log.event("save failed", step, why=self.checkpoints.reason)
        return committed

    def _save(self, step: int) -> None:
        self._settle(step)
        if self.exports.are_waiting and not self._note_export(step, self.exports.retry()):
            return  # see `exports.py`
        self.log.verify(step)
        self.checkpoints.save(self.engine, step, self._record(), self.log.snapshot())

    def _record(self) -> dict[str, Any]:
        """What a checkpoint says beside the engine's state."""
        return {
            "format": FORMAT,
            "identity": self.identity,
            "totals": self.totals,
            "guard": self.guard.state(),
        }

    def _leave(self, step: int) -> NoReturn:
        """The state is saved; end as one who was asked to."""
        self.log.event("stopped", step, saved=self._settle(step))
        self.log.end({}, {})
        dist.barrier()
        if self.engine.rank == 0:
            self.stop.file.unlink(missing_ok=True)
        raise Preempted(f"stopped after step {step} as asked; run it again to go on")

    def _distrusted(self, step: Step) -> str | None:
        """Why the weights after this step are not to be trusted, if they are not."""
        every = self.runtime.train.compare_every
        if self.guard.must_roll_back:
            self.guard.bundle(step.info.step, self.engine.rank, step.micro, step.verdict)
            return f"{IN_A_ROW} bad steps in a row"
        if step.info.step % every == 0 and (odd := differing(self.engine)):
            return odd
        return None

    def _roll_back(self, at: int, why: str) -> int:
        """Back to the newest whole checkpoint, past the data since; returns its step."""
        self._settle(at)
        if (step := self._load()) is None:
            raise UserError(f"step {at}: {why}, and no whole checkpoint is left to go back to")
        self.exports.forget_after(step)
        self.guard.rolled_back(at, step, why)
        self.log.cut(step)
        if self.engine.rank == 0:
            print(f"step {at}: {why}; back to step {step}", file=sys.stderr)
        return step

    def _model(self, start: Path | None, group: TensorGroup) -> OpenBAModel:
        architecture = self.recipe.model.architecture(self.tokenizer.size)
        weights = None
        if start is not None:
            with torch.device("meta"):
                shape = OpenBAModel(architecture)
            weights = fitting(shape, load_weights(weights_folder(start, self.recipe.start_step)), start)
        return make_part(architecture, group, weights)

    def _take_lease(self) -> None:
        self.lease = Lease(self.out)
        holder = [self.lease.take(_LEASE_SECONDS) if self.engine.rank == 0 else ""]
        dist.broadcast_object_list(holder)
        if holder[0]:
            raise UserError(f"{self.out}: {holder[0]} trains it; wait for that run or end it")

    def _resume(self) -> int:
        """Step to go on from."""
        step = self._load() or 0
        self.log.begin(step, self._saved_logs)
        self.guard.begin()
        return step

    def _load(self) -> int | None:
        """Take the state of the newest whole checkpoint; returns its step, None if there is none."""
        found = self.checkpoints.newest(self.engine.rank, self.engine.world, everywhere(self.engine))
        if found is None:
            return None
        record, read = reader(found)
        self._saved_logs = read_logs(found)
        changes = check(record, self.identity, found, self.runtime.train.allow_changes)
        for line in changes if self.engine.rank == 0 else ():
            print(f"{found.name}: goes on with {line}", file=sys.stderr)
        self.engine.restore(read, record)
        self.totals = record["totals"]
        self.guard.restore(record["guard"])
        return record["step"]

    def _rehearse(self) -> None:
        self.watchdog.beat("rehearse")
        micro = self.runtime.train.micro_batch
        seconds = rehearse(self.engine, self.checkpoints, self.train, micro, self._record())
        self.log.event("rehearsed", 0, seconds=seconds)

    def _log(self, step: Step, seconds: float) -> None:
        info = step.info
        self.totals = {
            key: total + getattr(step if key in _WORK else info, key) for key, total in self.totals.items()
        }
        # At every checkpoint too, so that a resumed run's rows have no gap there.
        cadence = (self.runtime.train.log_every, self.runtime.train.checkpoint_every, self.train.steps)
        if any(info.step % steps == 0 for steps in cadence):
            stall = self.checkpoints.stall - self._told_stall
            self._told_stall += stall
            figures = self.meter.row(seconds, info.tokens, step.flops, step.data_seconds, stall)
            modes = {f"loss_{mode}": loss for mode, loss in step.modes.items()}
            counts = {"failed_saves": self.checkpoints.failures, "totals": self.totals}
            clock = {"time": time.time(), "attempt": self.log.attempt, "attempt_seconds": self.log.seconds}
            row = asdict(info) | modes | figures | counts | clock
            self.log.write(METRICS, row)

    def _measure(self, step: int) -> None:
        self.watchdog.beat("evaluate")
        figures = self.heldout.measure(self.engine)
        self.log.write(HELDOUT, {"step": step, "tokens": self.totals["tokens"], **figures})
        self.guard.look_at_source_use(step, figures, self.label_entropies)

    def _note_export(self, step: int, written: bool) -> bool:
        """Have a refused export tried again, and note it; return whether it was written."""
        self.watchdog.beat("save")
        if not written:
            self._try_again = step + 2**self.exports.failures
            self.log.event("export failed", step, why=self.exports.reason)
        return written

    def _finish(self) -> dict[str, Any]:
        self.watchdog.beat("save")
        self.exports.finish()
        if self.engine.rank != 0:
            return {}
        self.log.verify(self.train.steps)
        facts = self._facts()
        leave_finished(self.out, self.identity, facts)
        return facts

    def _facts(self) -> dict[str, Any]:
        steps, heldout, attempts = (self.log.rows(name) for name in (METRICS, HELDOUT, ATTEMPTS))
        recompute = self.runtime.train.recompute
        facts = {
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
            "label_entropies": self.label_entropies,
            "source_alarms": alarms(heldout[-1], self.label_entropies),
            "workers": self.engine.world,
            "training_seconds": sum(row["seconds"] for row in attempts),
            "resumed": len(attempts) - 1,
            "rolled_back": self.guard.roll_backs,
            "flops": run_flops(self.recipe, self.tokenizer.size),
            "flops_hardware_padded": run_hardware_flops(self.recipe, self.tokenizer.size, recompute),
            "flops_useful": self.totals["flops"],
            "flops_hardware": self.totals["hardware_flops"],
            "energy_joules": totals([row.get("joules") for row in attempts]),
            "energy_estimated": totals([row.get("estimated") for row in attempts]),
        }
        return facts | {"cost": cost(cast(TrainFacts, facts), self.runtime)}
