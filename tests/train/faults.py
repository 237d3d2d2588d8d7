"""A stage in which something breaks, as `gang.py` runs it: real numbers, limits, signals and sleeps.

Nothing of the stage is replaced: faults come in through torch's hooks, the kernel's limits, and the places
where the stage calls its own methods.
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
from openba.train.stage import _Stage

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
        fault: a method of `_Faulty`.
        rank: where it happens.
        at: forward passes of training, from 1, in which it happens; the rehearsal's are not counted.
    """
    stage = None
    try:
        stage = _Faulty(build)
        if fault and stage.engine.rank == rank:
            stage.break_at(getattr(stage, f"_{fault}"), at)
        return stage.run()
    except (UserError, OSError) as error:
        return {"error": str(error), "pid": os.getpid()}
    finally:
        durable.sync = _SYNC
        if stage is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class _Faulty(_Stage):
    """A stage with a fault."""

    def break_at(self, fault: Any, at: Sequence[int]) -> None:
        passes = -self.engine.accumulation  # the rehearsal's

        def hook(module: Any, args: Any, loss: torch.Tensor) -> Any:
            nonlocal passes
            passes += module.training
            return fault(module, loss) if passes in at and module.training else None

        self.engine.engine.module.register_forward_hook(hook)

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
        (self.out / "steps" / BALLAST).unlink()

    def _flip(self, module: Any, loss: torch.Tensor) -> None:
        self.flip = True

    def _sleep_in_save(self, module: Any, loss: torch.Tensor) -> None:
        durable.sync = lambda path: time.sleep(120)

    def _sleep_in_data(self, module: Any, loss: torch.Tensor) -> None:
        samples = self.batches.samples
        self.batches.samples = _Slow(samples)

    def _sleep_in_evaluation(self, module: Any, loss: torch.Tensor) -> None:
        module.register_forward_hook(lambda module, *_: None if module.training else time.sleep(120))

    def _distrusted(self, step: Any) -> str | None:
        if getattr(self, "flip", False):
            self.flip = False
            bits = next(self.model.parameters()).data.view(torch.int32)
            bits.view(-1)[7] ^= 1
        return super()._distrusted(step)

    def _finish(self) -> dict[str, Any]:
        if self.engine.rank == 0:
            shutil.copytree(self.checkpoints.folder, self.out.with_name(f"{self.out.name}-kept"))
        return super()._finish()


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
