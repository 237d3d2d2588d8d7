"""A training in which something breaks, as `group_jobs.py` runs it: real numbers, limits, signals and sleeps.

Nothing of the training is replaced: faults come in through torch's hooks, the kernel's limits, and a hook of
the trainer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import shutil
import signal
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from openba import durable
from openba.artifacts import Build
from openba.errors import UserError
from openba.train.hooks import Hook
from openba.train.steps import FinishedStep
from openba.train.trainer import Trainer

BALLAST = "ballast"
_SYNC = durable.sync


def run(
    build: Build,
    fault: str = "",
    rank: int = 1,
    at: Sequence[int] = (),
) -> dict[str, Any]:
    """A stage whose checkpoints are kept; its facts, or the line that a user would read.

    Args:
        build: of the stage.
        fault: a method of `Faults`, without its underscore.
        rank: where it happens.
        at: forward passes of training, from 1, in which it happens; the rehearsal's are not counted.
    """
    trainer = None
    try:
        faults = Faults()
        trainer = Trainer(build, hooks=[faults])
        if fault and trainer.engine.rank == rank:
            faults.break_at(trainer, fault, at)
        return trainer.run()
    except (UserError, OSError) as error:
        return {"error": str(error), "pid": os.getpid()}
    finally:
        durable.sync = _SYNC
        if trainer is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Faults(Hook):
    """Faults of one worker, and a copy of its last checkpoints."""

    trainer: Trainer
    flips = False

    def break_at(self, trainer: Trainer, fault: str, at: Sequence[int]) -> None:
        """Let a fault happen in these forward passes of training."""
        self.trainer = trainer
        act = getattr(self, f"_{fault}")
        passes = -trainer.engine.accumulation  # the rehearsal's

        def hook(module: Any, args: Any, loss: torch.Tensor) -> Any:
            nonlocal passes
            passes += module.training
            return act(module, loss) if passes in at and module.training else None

        trainer.engine.engine.module.register_forward_hook(hook)

    def after_step(self, trainer: Trainer, finished: FinishedStep) -> None:
        """Flip a bit before the copies are compared."""
        if self.flips:
            self.flips = False
            bits = next(trainer.model.parameters()).data.view(torch.int32)
            bits.view(-1)[7] ^= 1

    def before_end(self, trainer: Trainer) -> None:
        """Copy the checkpoints, which go when the output is complete."""
        if trainer.engine.rank == 0:
            folder = trainer.checkpoints.folder
            shutil.copytree(folder, trainer.out.with_name(f"{trainer.out.name}-kept"))

    def _nan_loss(self, module: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss * float("nan")

    def _huge_loss(self, module: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss / loss.detach() * 1e5 * 4000  # a mean above 10,000 over the tokens of both workers

    def _nan_gradient(self, module: Any, loss: torch.Tensor) -> torch.Tensor:
        loss = loss * 1.0
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    def _sleep(self, module: Any, loss: torch.Tensor) -> None:
        time.sleep(120)

    def _stop_itself(self, module: Any, loss: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _killed(self, module: Any, loss: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _asked_to_stop(self, module: Any, loss: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _asked_twice(self, module: Any, loss: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # the interpreter is to look at its signals

    def _no_memory(self, module: Any, loss: torch.Tensor) -> None:
        torch.empty(2**50, dtype=torch.uint8).zero_()

    def _small_files(self, module: Any, loss: torch.Tensor) -> None:
        """The next share does not fit, while logs and heartbeats do."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, resource.RLIM_INFINITY))

    def _no_sync(self, module: Any, loss: torch.Tensor) -> None:
        refuse_sync()

    def _slow_disk(self, module: Any, loss: torch.Tensor) -> None:
        """From now on a file takes longer to reach the disk than a step."""
        before = durable.sync

        def slow(path: Path) -> None:
            time.sleep(0.2)
            before(path)

        durable.sync = slow

    def _free_disk(self, module: Any, loss: torch.Tensor) -> None:
        """What fills the disk of the kept weights goes away."""
        (self.trainer.out / "steps" / BALLAST).unlink()

    def _flip(self, module: Any, loss: torch.Tensor) -> None:
        self.flips = True

    def _sleep_in_save(self, module: Any, loss: torch.Tensor) -> None:
        durable.sync = lambda path: time.sleep(120)

    def _sleep_in_data(self, module: Any, loss: torch.Tensor) -> None:
        batches = self.trainer.batches
        batches.samples = _Slow(batches.samples)

    def _sleep_in_evaluation(self, module: Any, loss: torch.Tensor) -> None:
        module.register_forward_hook(lambda module, *_: None if module.training else time.sleep(120))


def refuse_sync() -> None:
    """The kernel answers fsync with EIO, to this thread and those that it starts; there is no way back."""
    load, equal, answer = 0x20, 0x15, 0x06
    number, machine = {"x86_64": (74, 0xC000003E), "aarch64": (82, 0xC00000B7)}[platform.machine()]
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, 3, machine),
        (load, 0, 0, 0),  # the call's number
        (equal, 0, 1, number),
        (answer, 0, 0, 0x00050000 | errno.EIO),
        (answer, 0, 0, 0x7FFF0000),  # let it pass
    ]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(code)
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(held)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, a_filter = 38, 22, 2
    for arguments in ((no_new_privileges, 1, 0, 0, 0), (seccomp, a_filter, described, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "no filter of system calls")


class _Slow:
    """Samples that take for ever."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def lengths(self, *args: Any) -> Any:
        time.sleep(120)
