"""A registered model's pointer: addresses in stores and digests of files, of an adapter also of its base.

Owns the pointer's form, which is `pointer.json` of a registered version, and how it becomes a folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openba.artifacts import Step, Store, fetched
from openba.errors import UserError
from openba.json_types import JsonObject
from openba.model.adapter_base import BASE_FILE

_MODEL = "model"


def make_pointer(step: Step, store: Store, folder: str = _MODEL) -> JsonObject:
    """Return the pointer to the model of a training, or of weights that were taken into the store.

    Args:
        step: which is built.
        store: where its output is.
        folder: of the model in the output.

    Raises:
        UserError: it is not built, or it is an adapter whose base is not.
    """
    record = store.manifest(step)
    if record is None:
        raise UserError(f"{step.key}: not built; `openba run --until {step.name}` builds it")
    files = {name: entry for name, entry in record["files"].items() if name.startswith(f"{folder}/")}
    pointer: JsonObject = {"uri": store.uri(step), "files": files}
    if folder != _MODEL:
        pointer["folder"] = folder
    if f"{folder}/{BASE_FILE}" in files and "start" in step.inputs:
        start_step = getattr(step.recipe, "start_step", None)
        base_folder = _MODEL if start_step is None else f"steps/{start_step}"
        pointer["base"] = make_pointer(step.inputs["start"], store, base_folder)
    return pointer


@contextmanager
def fetched_model(pointer: JsonObject) -> Iterator[Path]:
    """Provide the folder of a model by its pointer, its digests checked; an adapter's base with it.

    Of a remote store both are copies, which are gone after the block.

    Raises:
        UserError: a file is missing or is not what its manifest says.
    """
    with fetched(pointer["uri"], pointer["files"]) as output:
        folder = output / pointer.get("folder", _MODEL)
        if pointer.get("base") is None:
            yield folder
            return
        with fetched_model(pointer["base"]) as base, _standing_on(folder, base) as adapter:
            yield adapter


@contextmanager
def _standing_on(adapter: Path, base: Path) -> Iterator[Path]:
    """Provide an adapter's folder that names this base, wherever it was when the adapter was trained."""
    with tempfile.TemporaryDirectory(prefix="openba-adapter-") as scratch_folder:
        for path in adapter.iterdir():
            (Path(scratch_folder) / path.name).symlink_to(path.resolve())
        base_record = json.loads((adapter / BASE_FILE).read_text(encoding="utf-8"))
        base_record["folder"] = str(base.resolve())
        (Path(scratch_folder) / BASE_FILE).unlink()
        (Path(scratch_folder) / BASE_FILE).write_text(json.dumps(base_record), encoding="utf-8")
        yield Path(scratch_folder)
