"""Identity of a run, which its checkpoints carry: model, recipe, tokenizer, data, and the start's weights.

Owns the comparison at a resume. A stage's folder is named by its fingerprint, so this meets folders that
were copied, data that was changed in place, and checkpoints of another version of openba.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openba import durable
from openba.config import flatten
from openba.errors import UserError
from openba.json_types import JsonObject
from openba.model.adapter_base import BASE_FILE
from openba.model.files import weights_folder
from openba.recipes.train import TrainStep

FORMAT = 4
"""Of checkpoints; 1 had no identity, 2 no FLOPs among its totals, 3 no digest of its marker and no logs."""
HARMLESS = ("train.evaluate_every", "train.heldout_batches")
"""What may differ: it changes what is measured, not what is learnt."""


def identity(recipe: TrainStep, input_folders: Mapping[str, Path]) -> JsonObject:
    """Return the identity of a run, as JSON values."""
    start = weights_folder(Path(), recipe.start_step)
    read = {**_READ, "start": (f"{start}/*.safetensors", f"{start}/*.bin", f"{start}/{BASE_FILE}")}
    return {
        "model": recipe.model.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
        "part": recipe.part,
        "inputs": {
            key: _folder(path, read[key]) for key, path in sorted(input_folders.items()) if key in read
        },
    }


def check(
    saved_record: Mapping[str, Any], current_identity: Mapping[str, Any], folder: Path, changes_allowed: bool
) -> list[str]:
    """Compare a checkpoint's record with this run; returns the differences that it may have.

    Raises:
        UserError: another form of checkpoint, or one of another run that is not allowed.
    """
    saved_format = saved_record.get("format", 1)
    if saved_format != FORMAT:
        raise UserError(
            f"{folder}: a checkpoint of form {saved_format}, this version of openba reads {FORMAT}; "
            f"go on with the version that wrote it, or remove {folder.parent} to start again"
        )
    saved_values = flatten(saved_record["identity"])
    current_values = flatten(dict(current_identity))
    changed_values = {
        key: (saved_values.get(key), current_values.get(key))
        for key in sorted(saved_values.keys() | current_values.keys())
    }
    differences = {key: f"{key}: {a} -> {b}" for key, (a, b) in changed_values.items() if a != b}
    # What changes only measurements may differ; what changes learning may if the runtime allows it.
    if harmful := [line for key, line in differences.items() if key not in HARMLESS and not changes_allowed]:
        raise UserError(
            f"{folder}: a checkpoint of another run ({'; '.join(harmful)}); remove {folder.parent} to start "
            "again, or allow it with runtime.train.allow_changes=true"
        )
    return list(differences.values())


_READ = {"tokenizer": ("*.model",), "data": ("**/*.npy",)}
"""Files of each input that decide what is learnt, beside the weights that a run starts from."""


def _folder(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """Path -> digest of an input's files."""
    input_files = {path for pattern in patterns for path in folder.glob(pattern)}
    return {path.relative_to(folder).as_posix(): durable.sampled_digest(path) for path in sorted(input_files)}
