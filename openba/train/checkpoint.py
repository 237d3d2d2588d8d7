"""Checkpoints of a running stage: written beside the training, committed by a marker, verified when read.

    checkpoints/step-000120/rank-00000.safetensors  a worker's share
    checkpoints/step-000120/rank-00000.json         its digest
    checkpoints/step-000120/COMMITTED               step, numbers, files' sizes and SHA-256; last

Owns staging (`step-000120.tmp`), the writer thread, the marker, verification, choice and retention. The form
is the same for any number of workers and ZeRO stage (`state.py`), so another number of them goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from openba.errors import UserError
from openba.train.engine import Engine

MARKER = "COMMITTED"
FAILURES = 5
"""Saves in a row that may fail, as on a full disk, before the training stops."""
_STEP = "step-" + "[0-9]" * 6


class Checkpoints:
    """The checkpoints of one run in a folder that all workers see."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._save: _Save | None = None
        self.failures = 0
        """Saves that failed since the last that did not; the same on all workers."""
        self.stall = 0.0
        """Seconds that training has waited for saves."""
        self.reason = ""
        """Why the last failed save failed, and on which rank."""

    def save(self, engine: Engine, step: int, extra: Mapping[str, Any]) -> None:
        """All workers call it; returns when the state is copied. It is committed while training goes on.

        Args:
            engine: this worker's.
            step: steps that are done.
            extra: what the record says beside the engine's numbers.

        Raises:
            UserError: the last five saves failed.
        """
        self.settle(engine)
        begin = time.perf_counter()
        staged = self.folder / f"step-{step:06d}.tmp"
        error = _prepare(staged) if engine.rank == 0 else None
        tensors, numbers = engine.share()
        dist.barrier()
        record = {"step": step, "world": engine.world, "zero_stage": engine.zero_stage, **numbers, **extra}
        self._save = _Save(self, staged, engine.rank, record, tensors, error)
        self.stall += time.perf_counter() - begin

    @property
    def failed(self) -> bool:
        """The save that is being written has failed on this worker; to be settled at once."""
        return self._save is not None and self._save.error is not None

    def settle(self, engine: Engine) -> bool:
        """Wait for the save that is being written; all workers call it together. False: it failed.

        Raises:
            UserError: the last five saves failed.
        """
        save, self._save = self._save, None
        if save is None:
            return True
        begin = time.perf_counter()
        save.written.wait()
        failed = bool(engine.sum([float(save.error is not None)])[0])
        if failed:
            save.abandoned.set()
        save.join()
        failed = bool(engine.sum([float(save.error is not None)])[0])  # the commit itself, on rank 0
        self.stall += time.perf_counter() - begin
        self.failures = self.failures + 1 if failed else 0
        if failed:
            self._give_up(engine, save)
        return not failed

    def _give_up(self, engine: Engine, save: _Save) -> None:
        """Tell all workers why a save failed; the last of too many ends them."""
        told: list[str] = [""] * engine.world
        dist.all_gather_object(told, "" if save.error is None else str(save.error))
        self.reason = next(f"rank {rank}: {why}" for rank, why in enumerate(told) if why)
        if engine.rank == 0:
            print(f"checkpoint {save.staged.stem}: {self.reason}; training goes on", file=sys.stderr)
            shutil.rmtree(save.staged, ignore_errors=True)  # what it holds may be what fills the disk
        if self.failures >= FAILURES:
            raise UserError(
                f"{self.folder}: {FAILURES} checkpoints in a row could not be written ({self.reason}); free "
                "some space or mend the disk, then run again"
            )

    def newest(self, rank: int = 0, world: int = 1, agree: Callable[[bool], bool] = bool) -> Path | None:
        """Folder of the newest checkpoint whose files are as they were written.

        A damaged one is told and put aside as `step-N.damaged`.

        Args:
            rank: this worker; the workers share the files of a checkpoint among them.
            world: how many look together.
            agree: whether all workers found their part whole, see `everywhere`.
        """
        for folder in sorted(self.folder.glob(_STEP), reverse=True):
            fault = _fault(folder, rank, world)
            if fault:
                print(f"checkpoint {folder}: {fault}; the one before it is used", file=sys.stderr)
            if agree(not fault):
                return folder
            if rank == 0:
                folder.replace(_free(folder.with_suffix(".damaged")))
            agree(True)  # nobody looks on before it is put aside
        return None

    def prune(self) -> None:
        """Keep the newest `keep` committed ones."""
        committed = [f for f in sorted(self.folder.glob(_STEP)) if (f / MARKER).exists()]
        for old in committed[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)


class _Save(Thread):
    """Write one worker's share; on rank 0 wait for the others' and commit."""

    def __init__(
        self,
        owner: Checkpoints,
        staged: Path,
        rank: int,
        record: dict[str, Any],
        tensors: dict[str, Tensor],
        error: OSError | None,
    ) -> None:
        super().__init__(name=f"checkpoint-{record['step']}", daemon=True)
        self.owner, self.staged, self.rank, self.record, self.tensors = owner, staged, rank, record, tensors
        self.written, self.abandoned = Event(), Event()
        self.error = error
        self.start()

    def run(self) -> None:
        """The thread's work."""
        try:
            if self.error is None:
                self._write()
            self.written.set()
            if self.rank == 0 and self.error is None and self._all_there():
                self._commit()
        except BaseException as error:  # handed to the training thread
            self.error = error if isinstance(error, OSError) else OSError(str(error))
        finally:
            self.written.set()

    def _write(self) -> None:
        file = self.staged / f"rank-{self.rank:05d}.safetensors"
        save_file(self.tensors, file)
        self.tensors = {}
        _sync(file)
        _leave(file.with_suffix(".json"), {file.name: [file.stat().st_size, _digest(file)]})

    def _all_there(self) -> bool:
        while len(list(self.staged.glob("rank-*.json"))) < self.record["world"]:
            if self.abandoned.wait(0.05):
                return False
        return True

    def _commit(self) -> None:
        files: dict[str, Any] = {}
        for report in sorted(self.staged.glob("rank-*.json")):
            files |= json.loads(report.read_text())
        target = self.staged.with_suffix("")
        shutil.rmtree(target, ignore_errors=True)
        self.staged.replace(target)
        _sync(target.parent)
        _leave(target / MARKER, self.record | {"files": files})
        _sync(target)
        self.owner.prune()


def reader(folder: Path) -> tuple[dict[str, Any], Callable[[str], Tensor]]:
    """The record of a checkpoint and a function from name to tensor; files are mapped, not read."""
    record = json.loads((folder / MARKER).read_text())
    where: dict[str, Any] = {}
    for name in record["files"]:
        file = safe_open(folder / name, framework="pt")
        where |= dict.fromkeys(file.keys(), file)
    return record, lambda name: where[name].get_tensor(name)


def _prepare(staged: Path) -> OSError | None:
    """An empty folder to stage in, without what worker groups that died have left; or why there is none."""
    try:
        for left in staged.parent.glob(f"{_STEP}.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        staged.mkdir(parents=True)
    except OSError as error:
        return error
    return None


def everywhere(engine: Engine) -> Callable[[bool], bool]:
    """For `newest`: true if it is true on all workers."""
    return lambda whole: engine.sum([float(not whole)])[0] == 0


def _fault(folder: Path, rank: int, world: int) -> str:
    """What is wrong with this worker's part of the files; empty if nothing is."""
    try:
        record = json.loads((folder / MARKER).read_text())
        files = list(record["files"].items())
        for name, (size, digest) in files[rank::world]:
            if (folder / name).stat().st_size != size:
                return f"{name} has {(folder / name).stat().st_size} bytes of {size}"
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"not committed, or its marker is broken ({error})"
    return ""


def _free(path: Path) -> Path:
    """The path, or the first of path.1, path.2... that is not taken."""
    taken = (path.with_name(f"{path.name}.{n}") for n in range(1, 1000))
    return next(p for p in (path, *taken) if not p.exists())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _leave(file: Path, value: dict[str, Any]) -> None:
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(value))
    _sync(partial)
    partial.replace(file)


def _sync(path: Path) -> None:
    """To the disk: a file's bytes, a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
