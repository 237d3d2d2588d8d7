"""Checkpoints of a running stage: committed by a marker written last, newest whole one wins.

    checkpoints/step-000120/...       every worker's shard (the engine writes them)
    checkpoints/step-000120/COMMITTED sizes of all files, written by rank 0 after all are there

Owns naming, the marker, choice and retention. It holds for one number of workers: another
number starts the stage again from its beginning.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from openba.train.engine import Engine

MARKER = "COMMITTED"


class Checkpoints:
    """The checkpoints of one run in a folder that all workers see."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, engine: Engine, step: int) -> None:
        """All workers call it; returns when the checkpoint is committed."""
        folder = self.folder / f"step-{step:06d}"
        if engine.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # left by a worker group that died here
        dist.barrier()
        engine.save(folder)
        dist.barrier()
        if engine.rank == 0:
            self._commit(folder, step, engine.world)
        dist.barrier()

    def newest(self, world: int) -> tuple[int, Path] | None:
        """Step and folder of the newest whole checkpoint of this number of workers."""
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            record = _read(folder)
            if record is not None and record["world"] == world:
                return record["step"], folder
        return None

    def _commit(self, folder: Path, step: int, world: int) -> None:
        files = {
            str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()
        }
        partial = folder / f"{MARKER}.tmp"
        with partial.open("w") as file:
            json.dump({"step": step, "world": world, "files": files}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / MARKER)
        self._prune(world)

    def _prune(self, world: int) -> None:
        """Keep the newest of this number of workers. Those of another are void: their run began again."""
        whole = {f: record for f in sorted(self.folder.glob("step-*")) if (record := _read(f)) is not None}
        own = [f for f, record in whole.items() if record["world"] == world]
        for old in whole.keys() - set(own[-self.keep :]):
            shutil.rmtree(old, ignore_errors=True)


def _read(folder: Path) -> dict[str, Any] | None:
    """The marker, if every file it names is there with its size."""
    try:
        record = json.loads((folder / MARKER).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError):
        return None
    return record if whole else None
