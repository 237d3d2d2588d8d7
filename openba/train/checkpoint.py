"""Checkpoints of a running stage: written beside the training, committed by a marker, verified when read.

    checkpoints/step-000120/rank-00000.safetensors  a worker's share
    checkpoints/step-000120/logs.json               the stage's logs up to this step (`log.py`)
    checkpoints/step-000120/COMMITTED               step, numbers, sizes and digests of files; last

Every byte is covered by a digest, the marker's by its own. While a checkpoint is staged in `step-000120.tmp`,
`rank-00000.json` gives rank 0 the digest of a share; it is deleted before the commit.

Owns staging, the writer thread, the marker, verification, choice and retention. The form is the same for any
number of workers and ZeRO stage (`state.py`), so another number of them goes on from it.
"""

from __future__ import annotations

import json
import re
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

from openba import durable
from openba.errors import UserError
from openba.json_types import JsonObject
from openba.train.engine import Engine

MARKER = "COMMITTED"
LOGS = "logs.json"
FAILURES = 5
"""Saves in a row that may fail, as on a full disk, before the training stops."""
_NAME = re.compile(r"step-(\d{6,})(\.tmp)?")
_SHARE = ".safetensors"


def committed_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that have their marker, in rising order; files are not verified."""
    return [step for step, path in _folders(folder) if (path / MARKER).exists()]


def _folders(folder: Path, staged: bool = False) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint, or of each one that is staged, by rising step."""
    matched_names = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted(
        (int(match[1]), path) for match, path in matched_names if match and bool(match[2]) is staged
    )


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

    def save(
        self,
        engine: Engine,
        step: int,
        extra: Mapping[str, Any],
        logs: Mapping[str, list[str]] | None = None,
    ) -> None:
        """All workers call it; returns when the state is copied. It is committed while training goes on.

        Args:
            engine: this worker's.
            step: steps that are done.
            extra: what the record says beside the engine's numbers.
            logs: lines of the stage's log files up to this step; rank 0's are written.

        Raises:
            UserError: the last five saves failed.
        """
        # At most one save is under way, so host memory holds at most one copy of the state.
        self.settle(engine)
        save_began = time.perf_counter()
        staged = self.folder / f"step-{step:06d}.tmp"
        error = _prepare(staged) if engine.rank == 0 else None
        tensors, numbers = engine.share()
        dist.barrier()
        record = {"step": step, "world": engine.world, "zero_stage": engine.zero_stage, **numbers, **extra}
        self._save = _Save(self, staged, engine.rank, record, tensors, dict(logs or {}), error)
        self.stall += time.perf_counter() - save_began

    @property
    def failed(self) -> bool:
        """The save that is being written has failed on this worker; to be settled at once."""
        return self._save is not None and self._save.error is not None

    def settle(self, engine: Engine) -> bool:
        """Wait for the save that is being written; all workers call it together. False: it failed.

        Raises:
            UserError: the last five saves failed.
        """
        save = self._save
        self._save = None
        if save is None:
            return True
        wait_began = time.perf_counter()
        save.written.wait()
        has_failed = bool(engine.sum([float(save.error is not None)])[0])
        if has_failed:
            save.abandoned.set()
        save.join()
        has_failed = bool(engine.sum([float(save.error is not None)])[0])  # the commit itself, on rank 0
        self.stall += time.perf_counter() - wait_began
        self.failures = self.failures + 1 if has_failed else 0
        if has_failed:
            self._give_up(engine, save)
        return not has_failed

    def _give_up(self, engine: Engine, save: _Save) -> None:
        """Tell all workers why a save failed; the last of too many ends them."""
        reasons: list[str] = [""] * engine.world
        dist.all_gather_object(reasons, "" if save.error is None else str(save.error))
        self.reason = next(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason)
        if engine.rank == 0:
            print(f"checkpoint {save.staged.stem}: {self.reason}; training goes on", file=sys.stderr)
            shutil.rmtree(save.staged, ignore_errors=True)  # what it holds may be what fills the disk
        if self.failures >= FAILURES:
            raise UserError(
                f"{self.folder}: {FAILURES} checkpoints in a row could not be written ({self.reason}); free "
                "some space or mend the disk, then run again"
            )

    def newest(
        self, rank: int = 0, world_size: int = 1, agree_everywhere: Callable[[bool], bool] = bool
    ) -> Path | None:
        """Folder of the newest checkpoint whose files are as they were written.

        A damaged one is reported on stderr and renamed to `step-N.damaged`.

        Args:
            rank: this worker; the workers share the files of a checkpoint among them.
            world_size: how many look together.
            agree_everywhere: Whether all workers found their part intact, see `everywhere`.

        Raises:
            UserError: a checkpoint was written by an older version of openba.
        """
        for _, folder in reversed(_folders(self.folder)):
            fault = _fault(folder, rank, world_size)
            if fault:
                print(f"checkpoint {folder}: {fault}; the one before it is used", file=sys.stderr)
            if agree_everywhere(not fault):
                return folder
            if rank == 0:
                folder.replace(_free(folder.with_suffix(".damaged")))
            agree_everywhere(True)  # nobody looks on before it is put aside
        return None

    def prune(self) -> None:
        """Delete all committed checkpoints but the newest `keep`, and older ones without a marker."""
        newest_steps = committed_steps(self.folder)[-self.keep :]
        for step, path in _folders(self.folder):
            if newest_steps and step < newest_steps[0]:
                # The marker goes first: a checkpoint that is half deleted must not look committed.
                (path / MARKER).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)


class _Save(Thread):
    """Write one worker's share; on rank 0 wait for the others' and commit."""

    def __init__(
        self,
        owner: Checkpoints,
        staged: Path,
        rank: int,
        record: JsonObject,
        tensors: dict[str, Tensor],
        logs: dict[str, list[str]],
        error: OSError | None,
    ) -> None:
        super().__init__(name=f"checkpoint-{record['step']}", daemon=True)
        self.owner, self.staged, self.rank, self.record, self.tensors = owner, staged, rank, record, tensors
        self.logs = logs
        self.written = Event()
        self.abandoned = Event()
        self.error = error
        self.start()

    def run(self) -> None:
        """Write what is queued; runs in the thread."""
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
        file = self.staged / f"rank-{self.rank:05d}{_SHARE}"
        save_file(self.tensors, file)
        # The copy of the state is the largest thing in host memory: freed before the slow part.
        self.tensors = {}
        durable.sync(file)
        files = {file.name: _state(file)}
        if self.rank == 0:
            durable.write_json(self.staged / LOGS, self.logs)
            files[LOGS] = _state(self.staged / LOGS)
        durable.write_json(file.with_suffix(".json"), files)

    def _all_there(self) -> bool:
        while len(list(self.staged.glob("rank-*.json"))) < self.record["world"]:
            if self.abandoned.wait(0.05):
                return False
        return True

    def _commit(self) -> None:
        files: JsonObject = {}
        for report_file in sorted(self.staged.glob("rank-*.json")):
            files |= json.loads(report_file.read_text())
            report_file.unlink()
        committed_folder = self.staged.with_suffix("")
        if (
            committed_folder.exists()
        ):  # without a marker, or damaged: else the run would not be at this step again
            committed_folder.replace(_free(committed_folder.with_suffix(".damaged")))
        self.staged.replace(committed_folder)
        durable.sync(committed_folder.parent)
        durable.write_json(committed_folder / MARKER, durable.signed({**self.record, "files": files}))
        self.owner.prune()


def read_marker(folder: Path) -> JsonObject:
    """Return the record of a committed checkpoint.

    Raises:
        FileNotFoundError: it is not committed.
        ValueError: a byte of the marker is not as it was written.
        UserError: an older version of openba wrote it, without a digest of the marker.
    """
    record = json.loads((folder / MARKER).read_text())
    if isinstance(record, dict) and "sha256" not in record and "format" in record:
        raise UserError(
            f"{folder}: a checkpoint of form {record['format']}, this version of openba reads none below 4; "
            f"go on with the version that wrote it, or remove {folder.parent} to start again"
        )
    if not durable.is_intact(record):
        raise ValueError("its digest differs")
    return record


def read_logs(folder: Path) -> dict[str, list[str]]:
    """Return the lines of the stage's log files as a checkpoint has them, by file name."""
    logs: dict[str, list[str]] = json.loads((folder / LOGS).read_text())
    return logs


def reader(folder: Path) -> tuple[JsonObject, Callable[[str], Tensor]]:
    """Return the record of a checkpoint and a function from name to tensor; files are mapped, not read."""
    record = read_marker(folder)
    tensor_files: JsonObject = {}
    for name in (name for name in record["files"] if name.endswith(_SHARE)):
        file = safe_open(folder / name, framework="pt")
        tensor_files |= dict.fromkeys(file.keys(), file)
    return record, lambda name: tensor_files[name].get_tensor(name)


def _prepare(staged: Path) -> OSError | None:
    """Return an empty staging folder without the remains of dead worker groups, or why there is none."""
    try:
        for _, abandoned in _folders(staged.parent, staged=True):
            shutil.rmtree(abandoned, ignore_errors=True)
        staged.mkdir(parents=True)
    except OSError as error:
        return error
    return None


def everywhere(engine: Engine) -> Callable[[bool], bool]:
    """Return a function for `newest` that is true if its argument is true on all workers."""
    return lambda is_intact: engine.sum([float(not is_intact)])[0] == 0


def _fault(folder: Path, rank: int, world_size: int) -> str:
    """Describe what is wrong with this worker's part of the files; empty if nothing is."""
    try:
        files = list(read_marker(folder)["files"].items())
        for name, (size, digest) in files[rank::world_size]:
            if (folder / name).stat().st_size != size:
                return f"{name} has {(folder / name).stat().st_size} bytes of {size}"
            if durable.sha256(folder / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"not committed, or its marker is broken ({error})"
    return ""


def _free(path: Path) -> Path:
    """Return the path, or the first of path.1, path.2... that does not exist."""
    taken_paths = (path.with_name(f"{path.name}.{n}") for n in range(1, 1000))
    return next(p for p in (path, *taken_paths) if not p.exists())


def _state(file: Path) -> list[Any]:
    """Size in bytes and digest of a file."""
    return [file.stat().st_size, durable.sha256(file)]
