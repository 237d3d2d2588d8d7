"""Record of a finished training: its facts, and digests of its exported files.

Owns the file `checkpoints/finished.json`. The output is complete only once its manifest is in the store; a
worker group that is started again before that takes the exported model instead of training once more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openba import durable
from openba.json_types import JsonObject
from openba.recipes.train import TrainStep
from openba.train.identity import identity

FINISHED = "checkpoints/finished.json"
_EXPORTED = ("model", "steps")
"""Folders with exported weights."""


def leave_finished(out_folder: Path, run_identity: Mapping[str, Any], facts: JsonObject) -> None:
    """Flush the exported weights to disk, then write the facts beside their digests."""
    exported_files = [
        path for folder in _EXPORTED for path in sorted((out_folder / folder).rglob("*")) if path.is_file()
    ]
    # Facts that outlive a power cut must not speak of weights that did not.
    for path in exported_files:
        durable.sync(path)
    digests = {path.relative_to(out_folder).as_posix(): durable.sha256(path) for path in exported_files}
    record = {"identity": dict(run_identity), "facts": facts, "files": digests}
    durable.write_record(out_folder / FINISHED, record)


def finished_facts(out_folder: Path, recipe: TrainStep, inputs: Mapping[str, Path]) -> JsonObject | None:
    """Return the facts of a finished run of this identity whose exported files are as written, else None."""
    record = durable.read_record(out_folder / FINISHED)
    if record is None or record["identity"] != identity(recipe, inputs):
        return None
    for name, digest in record["files"].items():
        if not (out_folder / name).exists() or durable.sha256(out_folder / name) != digest:
            print(
                f"{out_folder / name}: damaged since the training ended; it goes on from a checkpoint",
                file=sys.stderr,
            )
            return None
    facts: JsonObject = record["facts"]
    return facts
