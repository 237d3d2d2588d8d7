"""Trainer: one training step of the pipeline, as each worker of its group runs it.

Joins model, data, engine, loop and checkpoints; owns resuming, rolling back, and the export at the end. What
happens around an optimiser step is hooks' (`hooks.py`), and a caller may add its own. It is the same for all
stages and every expert; which one it is follows from the recipe and the inputs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from openba.accounting.energy import EnergyMeter, totals
from openba.accounting.estimate import estimated
from openba.accounting.flops import parameters
from openba.accounting.memory import checkpoint_bytes
from openba.artifacts import Build
from openba.errors import UserError
from openba.json_types import JsonObject
from openba.model.files import save_model, weights_folder
from openba.model.model import OpenBAModel
from openba.model.parallel import make_part
from openba.model.parallel_loss import TensorGroup
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.train import TrainRecipe, TrainStep
from openba.tokenizer.tokenizer import Tokenizer
from openba.train import facts
from openba.train.batches import TrainingBatches
from openba.train.checkpoint import Checkpoints, everywhere, read_logs, reader
from openba.train.deterministic import be_deterministic
from openba.train.engine import Engine
from openba.train.exports import Exports
from openba.train.finished import leave_finished
from openba.train.groups import make_groups
from openba.train.guard import Guard
from openba.train.heldout import HeldOut
from openba.train.hooks import (
    GuardHook,
    Hook,
    LogHook,
    MeasureHook,
    MeterHook,
    ProfileHook,
    RefusedSamplesHook,
    SaveHook,
    StopHook,
    UntrustedWeightsError,
    WatchHook,
)
from openba.train.identity import FORMAT, check, identity
from openba.train.lease import Lease
from openba.train.log import EVENTS, StageLog
from openba.train.loop import training_steps
from openba.train.meter import Meter, is_out_of_memory, leave_memory
from openba.train.objectives import measured_modes, training_samples
from openba.train.profile import Profile
from openba.train.rehearsal import rehearse
from openba.train.start import start_weights
from openba.train.stopping import StopRequest
from openba.train.watchdog import Watchdog

TOTALS = ("tokens", "targets", "skipped", "flops", "hardware_flops")
"""Sums over every step, logged or not, that checkpoints and facts have."""
_SLOWEST_DISK = 50e6
"""Bytes a second at which a worker's reads and writes are still no stall."""
_LEASE_SECONDS = 10.0
"""Seconds that a group waits for the one before it to be gone."""


class Trainer:
    """A training of one recipe on one worker; all workers make it and call its methods together."""

    def __init__(self, build: Build, hooks: Sequence[Hook] = ()) -> None:
        """Make model, data and engine.

        Args:
            build: The step's folder, recipe, inputs and runtime.
            hooks: More hooks than every training has; they come before these.
        """
        self.build = build
        self.step_recipe: TrainStep = build.recipe
        self.recipe: TrainRecipe = self.step_recipe.train
        self.runtime: PipelineRuntime = build.runtime
        self.out = build.out
        # Before the model is made: its initial values follow from the seed alone.
        torch.set_num_threads(self.runtime.train.threads)
        be_deterministic(self.runtime.train.deterministic)
        torch.manual_seed(self.recipe.seed)
        self.tokenizer = Tokenizer.load(build.inputs["tokenizer"])
        groups = make_groups(self.runtime.tensor_parallel)
        self.model = self._make_model(build.inputs.get("start"), groups.tensor)
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        self.trained_parameters = sum(parameter.numel() for parameter in trained)
        """Numbers that this rank trains; of a model that tensor-parallel ranks share, its part."""
        self.engine = Engine(self.model, groups, self.recipe, self.runtime)
        # After the engine, whose first collectives show that all workers are there.
        self.lease = self._take_lease()
        part = self.step_recipe.part
        samples = training_samples(self.recipe, build.inputs["data"], part, self.tokenizer)
        self.batches = TrainingBatches(
            samples,
            self.recipe,
            pad=self.tokenizer.pad,
            vocab=self.tokenizer.size,
            padded=self.engine.padded,
            modes=measured_modes(self.recipe, self.tokenizer),
        )
        self.log = StageLog(self.out, enabled=self.engine.rank == 0)
        self.totals: dict[str, float] = dict.fromkeys(TOTALS, 0)
        self.checkpoints = Checkpoints(self.out / "checkpoints", self.runtime.train.keep_checkpoints)
        self.exports = Exports(self.out, self.engine, self._writer())
        self.identity = identity(self.step_recipe, build.inputs)
        self.guard = Guard(self.recipe, self.out / "debug")
        self.label_entropies = samples.label_entropies()
        self.retry_step = -1
        """Step after which a save that failed is tried again."""
        self._saved_logs: dict[str, list[str]] = {}
        """Lines of the log files in the checkpoint that was loaded last."""
        self.hooks: list[Hook] = [*hooks, *self._own_hooks()]

    def run(self) -> JsonObject:
        """Train until the budget is spent and export the model; returns the step's facts, on rank 0.

        Raises:
            UserError: a worker is out of memory, the data or a disk is not usable, too many roll-backs.
            Preempted: asked to stop; the state is saved.
        """
        try:
            return self._run()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            report = leave_memory(self.out, self.engine.rank)
            raise UserError(
                f"rank {self.engine.rank}: out of memory ({report}); lower runtime.train.micro_batch "
                f"from {self.runtime.train.micro_batch} or raise runtime.train.zero_stage"
            ) from error
        finally:
            # Also after an error: a watchdog that lives on would end the process, and with it the message.
            for hook in self.hooks:
                hook.close()
            self.lease.give_back()

    def begin_phase(self, phase: str) -> None:
        """Tell the hooks what this worker begins: `data`, `step`, `evaluate`, `save` or `rehearse`."""
        for hook in self.hooks:
            hook.on_phase(phase)

    def save(self, step: int) -> None:
        """Begin to write a checkpoint, unless weights of a kept step still wait for the disk."""
        # One save at a time: the one before holds its tensors until they are written.
        self.settle(step)
        if self.exports.are_waiting and not self.note_export(step, self.exports.retry()):
            return  # see `exports.py`
        self.log.verify(step)
        self.checkpoints.save(self.engine, step, self._record(), self.log.snapshot())

    def settle(self, step: int) -> bool:
        """Wait for the checkpoint that is being written; returns whether it is committed."""
        self.begin_phase("save")
        is_committed = self.checkpoints.settle(self.engine)
        if not is_committed:
            # Twice as many steps each time: a full disk is not freed faster by trying at every step.
            self.retry_step = step + 2**self.checkpoints.failures
            self.log.event("save failed", step, why=self.checkpoints.reason)
        return is_committed

    def note_export(self, step: int, is_written: bool) -> bool:
        """Note a refused export, to be tried again; returns whether it was written."""
        self.begin_phase("save")
        if not is_written:
            self.retry_step = step + 2**self.exports.failures
            self.log.event("export failed", step, why=self.exports.reason)
        return is_written

    def _run(self) -> JsonObject:
        next_step: int | None = self._resume()
        is_first_of_node = os.environ.get("LOCAL_RANK", "0") == "0"  # one energy meter a node
        country = self.runtime.codecarbon
        with (
            EnergyMeter() if is_first_of_node else nullcontext() as meter,
            estimated(country, self.runtime.pue)
            if is_first_of_node and country
            else nullcontext() as estimate,
        ):
            if next_step == 0:
                self._rehearse()
                for hook in self.hooks:
                    hook.on_start(self)
            while next_step is not None:
                next_step = self._train(next_step)
        self.settle(self.recipe.steps)
        joules = self._sum_of_nodes(meter.joules() if meter else None)
        self.log.end(joules, self._sum_of_nodes(estimate))
        return self._finish()

    def _train(self, start_step: int) -> int | None:
        """Train from `start_step`; returns the step to go on from after a roll-back, None at the end."""
        self.begin_phase("data")
        for finished in training_steps(
            engine=self.engine,
            batches=self.batches,
            guard=self.guard,
            hooks=self.hooks,
            start_step=start_step,
        ):
            try:
                for hook in self.hooks:
                    hook.after_step(self, finished)
            # All workers raise it together: each verdict is of figures that they have in common.
            except UntrustedWeightsError as error:
                return self._roll_back(finished.step, str(error))
            self.begin_phase("data")
        return None

    def _roll_back(self, step: int, reason: str) -> int:
        """Load the newest committed checkpoint and pass over the data since; returns its step."""
        # The save that is being written may be the newest checkpoint.
        self.settle(step)
        saved_step = self._load_newest()
        if saved_step is None:
            raise UserError(f"step {step}: {reason}, and no committed checkpoint is there to go back to")
        self.exports.forget_after(saved_step)
        self.guard.roll_back(step, saved_step, reason)
        self.log.event(
            "rolled back",
            saved_step,
            at=step,
            why=reason,
            shift=self.guard.shift,
            roll_backs=self.guard.roll_backs,
        )
        self.log.cut(saved_step)
        if self.engine.rank == 0:
            print(f"step {step}: {reason}; back to step {saved_step}", file=sys.stderr)
        return saved_step

    def _resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns the step to go on from."""
        step = self._load_newest() or 0
        # The log first: the guard reads roll-backs from its events.
        self.log.begin(step, self._saved_logs)
        self.guard.resume(row for row in self.log.rows(EVENTS) if row["event"] == "rolled back")
        return step

    def _load_newest(self) -> int | None:
        """Load the state of the newest committed checkpoint; returns its step, None if there is none."""
        folder = self.checkpoints.newest(self.engine.rank, self.engine.world, everywhere(self.engine))
        if folder is None:
            return None
        # Files are mapped, not read: a rank touches only the pages of its own part.
        record, read_tensor = reader(folder)
        self._saved_logs = read_logs(folder)
        changes = check(record, self.identity, folder, self.runtime.train.allow_changes)
        for line in changes if self.engine.rank == 0 else ():
            print(f"{folder.name}: goes on with {line}", file=sys.stderr)
        self.engine.restore(read_tensor, record)
        self.totals = record["totals"]
        self.guard.restore(record["guard"])
        return record["step"]

    def _record(self) -> JsonObject:
        """Return what a checkpoint says beside the engine's state."""
        return {
            "format": FORMAT,
            "identity": self.identity,
            "totals": self.totals,
            "guard": self.guard.state(),
        }

    def _rehearse(self) -> None:
        # What fails late, such as a full disk or the largest batch, is to fail before hours are spent.
        self.begin_phase("rehearse")
        seconds = rehearse(self.engine, self.checkpoints, self.recipe, self._record())
        self.log.event("rehearsed", 0, seconds=seconds)

    def _finish(self) -> JsonObject:
        for hook in self.hooks:
            hook.before_end(self)
        self.begin_phase("save")
        self.exports.finish()
        training_facts: JsonObject = {}
        if self.engine.rank == 0:
            self.log.verify(self.recipe.steps)
            training_facts = facts.training_facts(self)
            leave_finished(self.out, self.identity, training_facts)
        # Rank 0 reads what it has written for its digests: the others stay, or the group ends around it.
        dist.barrier()
        return training_facts

    def _sum_of_nodes(self, figures: dict[str, float | None] | None) -> dict[str, float | None]:
        """Sum figures over the nodes, on all ranks; a rank that is not its node's first gives None."""
        by_rank: list[dict[str, float | None] | None] = [None] * self.engine.world
        dist.all_gather_object(by_rank, figures)
        return totals([node for node in by_rank if node is not None])

    def _own_hooks(self) -> list[Hook]:
        """Return the hooks of every training, in the order in which they act."""
        train_runtime = self.runtime.train
        engine = self.engine
        meter = Meter(self.step_recipe, self.tokenizer.size, self.runtime, engine.world)
        heldout = HeldOut(self.recipe, self.build.inputs["data"], self.tokenizer, engine.micro_batch)
        watchdog = Watchdog(
            self.out, engine.rank, engine.world, lambda: engine.meetings, train_runtime.stall_seconds,
            slow_phases=self._slow_phases(),
        )  # fmt: skip
        # Log before guard: the row of a step that is rolled back is cut with the rest. Measure before save: a
        # checkpoint's logs have the measurement. Stop after save.
        return [
            LogHook(meter),
            MeterHook(meter),
            GuardHook(),
            RefusedSamplesHook(),
            ProfileHook(Profile(self.out, engine.rank, train_runtime.profile_after)),
            MeasureHook(heldout, self.label_entropies),
            SaveHook(self),
            StopHook(StopRequest(self.out), engine.rank),
            WatchHook(watchdog),
        ]

    def _slow_phases(self) -> dict[str, float]:
        """Seconds that phases with long writes or reads may take on the slowest disk that is used."""
        count = sum(parameters(self.step_recipe.model, self.tokenizer.size).values())
        seconds = checkpoint_bytes(count) / _SLOWEST_DISK
        # A worker reads the whole of a checkpoint when it starts and rehearses; rank 0 writes the exported
        # model, of a third of these bytes, and reads it again for its digest, while the others wait.
        return {"start": seconds, "rehearse": 2 * seconds, "save": seconds}

    def _make_model(self, start_folder: Path | None, group: TensorGroup) -> OpenBAModel:
        """Make this rank's part of the model, from the weights of an exported one if there is one."""
        architecture = self.step_recipe.model.architecture(self.tokenizer.size)
        weights = None
        if start_folder is not None:
            folder = weights_folder(start_folder, self.step_recipe.start_step)
            weights = start_weights(folder, architecture, self.tokenizer)
        model = make_part(architecture, group, weights)
        if self.recipe.adapter is not None:
            # Here: peft imports transformers, which takes seconds, and few trainings have an adapter.
            from openba.model.adapter import add_adapter, narrow_frozen, train_new_rows

            add_adapter(model, self.recipe.adapter)
            if start_folder is not None and (count := self.tokenizer.size - self._start_ids(start_folder)):
                train_new_rows(model, self.tokenizer.size - count, count)
            narrow_frozen(model, self.recipe.precision)
        return model

    def _start_ids(self, start_folder: Path) -> int:
        """Return how many ids the start's tokenizer has."""
        return Tokenizer.load(weights_folder(start_folder, self.step_recipe.start_step)).size

    def _writer(self) -> Callable[[Path, dict[str, Tensor]], None]:
        """Return what writes the trained weights into a folder: a whole model or an adapter."""
        if self.recipe.adapter is not None:
            from openba.model.adapter import AdapterWriter

            base = weights_folder(self.build.inputs["start"], self.step_recipe.start_step)
            return AdapterWriter(self.model, self.recipe.adapter, self.tokenizer, base).write
        return partial(save_model, architecture=self.model.architecture, tokenizer=self.tokenizer)

    def _take_lease(self) -> Lease:
        lease = Lease(self.out)
        holder = [lease.take(_LEASE_SECONDS) if self.engine.rank == 0 else ""]
        dist.broadcast_object_list(holder)
        if holder[0]:
            raise UserError(f"{self.out}: {holder[0]} trains it; wait for that run or end it")
        return lease
