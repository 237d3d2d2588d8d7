"""What a stage leaves when its last step is done and its model exported: the facts, and digests of its files.

Owns the file `checkpoints/finished.json`. The output is complete only once its manifest is in the store; a
worker group that is started again before that takes the exported model instead of training once more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openba import durable
from openba.recipes.train import TrainStep
from openba.train.identity import identity

FINISHED = "checkpoints/finished.json"
_EXPORTED = ("model", "steps")
"""Folders with exported weights."""


def leave_finished(out: Path, run_identity: Mapping[str, Any], facts: dict[str, Any]) -> None:
    """Flush the exported weights to disk, then write the facts beside their digests."""
    files = [path for folder in _EXPORTED for path in sorted((out / folder).rglob("*")) if path.is_file()]
    for path in files:
        durable.sync(path)
    digests = {path.relative_to(out).as_posix(): durable.sha256(path) for path in files}
    durable.write_record(out / FINISHED, {"identity": dict(run_identity), "facts": facts, "files": digests})


def finished_facts(out: Path, recipe: TrainStep, inputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return the facts of a finished run of this identity whose exported files are as written, else None."""
    record = durable.read_record(out / FINISHED)
    if record is None or record["identity"] != identity(recipe, inputs):
        return None
    for name, digest in record["files"].items():
        if not (out / name).exists() or durable.sha256(out / name) != digest:
            print(
                f"{out / name}: damaged since the training ended; it goes on from a checkpoint",
                file=sys.stderr,
            )
            return None
    facts: dict[str, Any] = record["facts"]
    return facts
