"""Location of the weights of a `start` and digests of their files; nothing is loaded.

Owns what a user may write there and the digests that enter the fingerprint. Taking the weights into the store
is `adopt.py`'s. Imports no torch: `openba plan` does not load it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import fsspec

from openba import durable
from openba.artifacts import MANIFEST
from openba.errors import UserError
from openba.home import Home
from openba.json_types import Json, JsonObject
from openba.model.adapter_base import ADAPTER_CONFIG, BASE_FILE, holds_model
from openba.recipes.start import WeightsRecipe, WeightsStep

REGISTERED = re.compile(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))")
"""Name, alias and version of a registered model's address."""
Registered = Callable[[str], tuple[str, Mapping[str, Json]]]
"""Looks up a `models:/` address: URL of the output in its store, and its files with their digests."""
CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("spiece.model", "tokenizer_config.json")
FILE_PATTERNS = (
    *(CONFIG_FILE, ADAPTER_CONFIG, BASE_FILE, *TOKENIZER_FILES),
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json"),
)
"""Files of a model's folder that are read; others, such as code, are not."""
_MODEL_FOLDER = "model/"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve(recipe: WeightsRecipe, registered: Registered | None = None) -> WeightsStep:
    """Return the step that takes these weights, with the digests of their files.

    Args:
        recipe: as the user wrote it.
        registered: looks up `models:/` addresses; None: there is no registry to ask.

    Raises:
        UserError: there are no such weights, or the text names none.
    """
    location, weight_files = _location_and_files(recipe, registered)
    if recipe.tokenizer is not None:
        own_tokenizer = _tokenizer_digests(Path(recipe.tokenizer))
        return WeightsStep(start=recipe, location=location, files=weight_files, tokenizer_files=own_tokenizer)
    if weight_files and not any(Path(name).name == TOKENIZER_FILES[0] for name in weight_files):
        raise UserError(
            f"weights: {recipe.weights}: no {TOKENIZER_FILES[0]} beside the weights; give the file that they "
            "were trained with as `tokenizer`"
        )
    return WeightsStep(start=recipe, location=location, files=weight_files)


def is_folder(step: WeightsStep) -> bool:
    """Whether the weights lie in a folder of their own, and not below an output of a store."""
    return not any(name.startswith(_MODEL_FOLDER) for name in step.files)


def _location_and_files(recipe: WeightsRecipe, registered: Registered | None) -> tuple[str, dict[str, str]]:
    weights_address = recipe.weights
    if REGISTERED.fullmatch(weights_address):
        if registered is None:
            raise UserError(f"weights: {weights_address}: no registry is asked here; give the model's folder")
        url, entries = registered(weights_address)
        return url, _digests_of_output(entries)
    if (manifest := _manifest(weights_address)) is not None:
        return weights_address, _digests_of_output(manifest["files"])
    folder = Path(weights_address)
    if holds_model(folder):
        return str(folder.resolve()), _digests(_weight_files(folder))
    if folder.exists():
        raise UserError(f"weights: {weights_address}: no {CONFIG_FILE} in it; give the folder of a model")
    if _HUB_ID.fullmatch(weights_address) and recipe.revision is not None:
        if not _COMMIT.fullmatch(recipe.revision):
            raise UserError(
                f"revision: {recipe.revision!r} is no commit of {weights_address}; give its 40 hex digits, "
                "so that the same recipe means the same weights"
            )
        return weights_address, {}
    raise UserError(
        f"weights: {weights_address}: no such folder, nor an output of a store or models:/NAME@ALIAS; a "
        "model of the hub needs its commit as `revision`"
    )


def _manifest(weights_address: str) -> JsonObject | None:
    """Return the manifest of an output in a store; None if the address names none."""
    try:
        filesystem, base = fsspec.core.url_to_fs(weights_address)
        record = json.loads(filesystem.cat_file(f"{base}/{MANIFEST}"))
    except (OSError, ValueError, ImportError):
        return None
    return record if durable.is_intact(record) else None


def _digests_of_output(entries: Mapping[str, Json]) -> dict[str, str]:
    """Digests of a training's exported model, named below its output."""
    digests = {name: str(entry["sha256"]) for name, entry in entries.items() if _is_of_model(name)}
    if not digests:
        raise UserError("weights: the output has no folder `model`; give the output of a training")
    return digests


def _is_of_model(name: str) -> bool:
    path = Path(name)
    is_read = any(path.match(pattern) for pattern in FILE_PATTERNS)
    return is_read and name.startswith(_MODEL_FOLDER) and len(path.parts) == 2


def _weight_files(folder: Path) -> list[Path]:
    """Files of a folder that are read; of two forms of the weights, safetensors."""
    matching = (path for pattern in FILE_PATTERNS for path in folder.glob(pattern))
    read_files = sorted({path for path in matching if path.is_file()})
    has_safetensors = any(path.suffix == ".safetensors" for path in read_files)
    return [path for path in read_files if not (has_safetensors and ".bin" in path.suffixes)]


def _tokenizer_digests(path: Path) -> dict[str, str]:
    """Digests of a tokenizer that is not the weights' own, by file."""
    files = [path / name for name in TOKENIZER_FILES] if path.is_dir() else [path]
    if not files[0].is_file():
        raise UserError(f"tokenizer: {files[0]}: no such file; give the weights' spiece.model")
    return {str(file.resolve()): next(iter(_digests([file]).values())) for file in files if file.is_file()}


def _digests(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by name. A file that has not changed since is not read again.

    Digests are kept in the home by path, inode, size and times: 29 GB take half a minute to read, and every
    command that looks at the pipeline asks.
    """
    cache_file = Home.from_environment().root / "digests.json"
    known_states = durable.read_record(cache_file) or {}
    file_digests: dict[str, str] = {}
    fresh_states: dict[str, Json] = {}
    for path in files:
        status = path.stat()
        # The time of change cannot be set back, unlike that of modification.
        file_state = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        key = str(path.resolve())
        entry = known_states.get(key)
        if isinstance(entry, dict) and entry["state"] == file_state:
            file_digests[path.name] = entry["sha256"]
            continue
        file_digests[path.name] = durable.sha256(path)
        fresh_states[key] = {"state": file_state, "sha256": file_digests[path.name]}
    if fresh_states:
        with suppress(OSError):  # a home that cannot be written to only costs the time
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            durable.write_record(cache_file, known_states | fresh_states)
    return file_digests
