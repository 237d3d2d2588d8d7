"""Steps, fingerprints, the store and manifests: what an output *is*, apart from where it was made.

A `Step` is inert: its identity is its name, its kind's version, its recipe, the state of any
files it reads from outside, and the fingerprints of its inputs. Machine facts (workers, micro
batches, paths, log cadence) travel in a `Runtime` and never enter the hash.

    work/<name>/<fingerprint>/                  being built; a resumable step continues in it
    work/<name>/<fingerprint>/manifest.json     built, not yet in the store: published without building again
    store/<name>/<fingerprint>/...              complete outputs only
    store/<name>/<fingerprint>/manifest.json    written last, atomically: present == complete

This file owns identity, completeness and building once. It does not know Prefect, Ray or
MLflow: those run `materialize` or mirror its manifests.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import fsspec
from pydantic import BaseModel, ConfigDict

from openba import durable
from openba.config import flatten
from openba.errors import UserError
from openba.json_types import Json, JsonObject

MANIFEST = "manifest.json"


class Recipe(BaseModel):
    """Base of every identity-bearing config: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Runtime(BaseModel):
    """Base of every execution-only config. Never fingerprinted."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Place = Literal["flow", "job", "worker_group"]


@dataclass(frozen=True)
class Kind:
    """A sort of step: the function that builds it and where that function runs.

    `flow`: in the process that runs the pipeline. `job`: as a Ray job. `worker_group`: on every worker
    of a Ray Train group inside a Ray job. Bump `version` when the function changes what it
    computes; source text is never hashed, so a log line does not cost 10,000 GPU-hours.

    `scratch` names folders of the output directory that only serve to resume. They are no part of the output
    and are deleted once the output is durable.
    """

    function: str  # "package.module:function", imported only where it runs
    version: str
    place: Place = "flow"
    resumable: bool = False
    scratch: tuple[str, ...] = ()

    def load(self) -> Callable[[Build], Mapping[str, Json] | None]:
        """Import the function."""
        module_name, _, function_name = self.function.partition(":")
        return getattr(importlib.import_module(module_name), function_name)


@dataclass(frozen=True, eq=False)
class Step:
    """A named, fingerprinted unit of work."""

    name: str
    kind: Kind
    recipe: Recipe
    inputs: Mapping[str, Step] = field(default_factory=dict)
    outside: Mapping[str, Json] = field(default_factory=dict)  # state of files no step has made
    config: str = ""  # where the recipe stands in the pipeline's config, for `openba show`

    @cached_property
    def identity(self) -> JsonObject:
        """Everything that changes the result, as JSON values."""
        return {
            "name": self.name,
            "version": self.kind.version,
            "recipe": self.recipe.model_dump(mode="json"),
            "outside": dict(self.outside),
            "inputs": {key: step.fingerprint for key, step in sorted(self.inputs.items())},
        }

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits of the identity's SHA-256."""
        # allow_nan=False: a NaN has no canonical form; json raises for any other non-JSON value.
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def key(self) -> str:
        """`name/fingerprint`, the step's place in the store."""
        return f"{self.name}/{self.fingerprint}"

    def walk(self) -> Iterator[Step]:
        """Yield this step and everything upstream of it, inputs first, each once."""
        seen_names: set[str] = set()

        def visit(step: Step) -> Iterator[Step]:
            for input_step in step.inputs.values():
                yield from visit(input_step)
            if step.name not in seen_names:
                seen_names.add(step.name)
                yield step

        yield from visit(self)


@dataclass(frozen=True)
class Build:
    """Arguments of a step's function."""

    out: Path  # an own directory to write into; files here when it returns are the output
    recipe: Any
    inputs: Mapping[str, Path]  # directories of the inputs' complete outputs
    runtime: Any = None


class Store:
    """Complete outputs under one root, a local path or any fsspec URL, and a local work folder.

    A local root is used in place and published to by rename. A remote root is read through a
    local copy below `work/.cache` and published to file by file, the manifest last: object
    stores have no rename, so the marker is what makes an output complete.
    """

    def __init__(self, root: str | Path, work_folder: Path) -> None:
        self.root = str(root)
        self.work = Path(work_folder)
        self.fs, self.base = fsspec.core.url_to_fs(self.root)
        self.remote = "file" not in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )

    def uri(self, step: Step) -> str:
        """Return the address of the step's output, for people and registries."""
        return f"{self.root.rstrip('/')}/{step.key}"

    def manifest(self, step: Step) -> JsonObject | None:
        """Return the step's manifest if its output is complete and every recorded file is still there."""
        record = self._read(f"{step.key}/{MANIFEST}")
        if record is None:
            return None
        for name, entry in record["files"].items():
            try:
                # Sizes only, as this is asked of every step in every run; `verified_path` reads the contents.
                if self.fs.size(f"{self.base}/{step.key}/{name}") != entry["bytes"]:
                    return None
            except FileNotFoundError:
                return None
        return record

    def path(self, step: Step) -> Path:
        """Return a local directory that holds the complete output; fetched first if the root is remote."""
        if not self.remote:
            return Path(self.base) / step.key
        local_folder = self.work / ".cache" / step.key
        if not (local_folder / MANIFEST).exists():
            for remote_file in self.fs.find(f"{self.base}/{step.key}"):
                if file_name := remote_file.partition(f"{step.key}/")[2].rstrip("/"):
                    _check_is_below(self.uri(step), file_name)
            # Several processes may fetch one output at a time: each into a folder of its own, renamed when
            # complete.
            partial_folder = local_folder.with_name(f"{local_folder.name}.{os.getpid()}")
            self.fs.get(f"{self.base}/{step.key}/", str(partial_folder) + "/", recursive=True)
            shutil.rmtree(local_folder, ignore_errors=True)
            partial_folder.rename(local_folder)
        return local_folder

    def verified_path(self, step: Step) -> Path:
        """`path`, after every file was compared with its digest, once per process and file.

        Raises:
            UserError: the output is not built, or a file is missing or damaged.
        """
        record = self.manifest(step)
        if record is None:
            raise UserError(f"{step.name}: not built, or its output was lost; run the pipeline from there")
        local_folder = self.path(step)
        try:
            _check(self.uri(step), local_folder, record["files"])
        except UserError:
            if not self.remote:
                raise
            shutil.rmtree(local_folder)  # the local copy may be what is damaged
            local_folder = self.path(step)
            _check(self.uri(step), local_folder, record["files"])
        return local_folder

    def siblings(self, name: str) -> list[JsonObject]:
        """Manifests of every build of this step name, oldest first."""
        manifest_records = (
            self._read(str(path)[len(self.base) + 1 :])
            for path in self.fs.glob(f"{self.base}/{name}/*/{MANIFEST}")
        )
        return sorted((r for r in manifest_records if r), key=lambda record: record["finished"])

    def unpublished(self, step: Step) -> JsonObject | None:
        """Return the manifest of an output that was built in the work folder and has not reached the store.

        None if there is none or if one of its files is not as it was built.
        """
        built = self.work / step.key
        record = _parse_manifest((built / MANIFEST).read_bytes()) if (built / MANIFEST).exists() else None
        if record is None or record["fingerprint"] != step.fingerprint:
            return None
        try:
            _check(str(built), built, record["files"])
        except UserError:
            return None
        return record

    def publish(self, step: Step, record: JsonObject) -> None:
        """Make the built work folder, whose manifest is written, the step's complete output.

        Nothing is deleted before its successor is durable: the scratch folders go once the manifest is on
        disk, a damaged earlier output once the new one is in its place.
        """
        built_folder = self.work / step.key
        for name in step.kind.scratch:
            shutil.rmtree(built_folder / name, ignore_errors=True)
        if not self.remote:
            self._move_into_place(step, built_folder, [*record["files"], MANIFEST])
            return
        for name in (*record["files"], MANIFEST):  # the manifest last: it makes the output complete
            self.fs.makedirs(os.path.dirname(f"{self.base}/{step.key}/{name}"), exist_ok=True)
            self.fs.put_file(str(built_folder / name), f"{self.base}/{step.key}/{name}")
        shutil.rmtree(built_folder)

    def _move_into_place(self, step: Step, built_folder: Path, file_names: list[str]) -> None:
        final_folder = Path(self.base) / step.key
        replaced_folder, incoming_folder = (
            Path(self.base) / folder / step.key for folder in (".replaced", ".incoming")
        )
        final_folder.parent.mkdir(parents=True, exist_ok=True)
        if final_folder.exists():  # a damaged earlier output
            shutil.rmtree(replaced_folder, ignore_errors=True)
            replaced_folder.parent.mkdir(parents=True, exist_ok=True)
            final_folder.rename(replaced_folder)
        try:
            built_folder.rename(final_folder)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_durably(built_folder, incoming_folder, file_names)  # the store is on another file system
            incoming_folder.rename(final_folder)
            shutil.rmtree(built_folder)
        durable.sync(final_folder.parent)
        shutil.rmtree(replaced_folder, ignore_errors=True)

    def _read(self, key: str) -> JsonObject | None:
        try:
            return _parse_manifest(self.fs.cat_file(f"{self.base}/{key}"))
        except FileNotFoundError:
            return None


def _parse_manifest(content: bytes) -> JsonObject | None:
    """Return the record of a manifest; None if it was cut short or one of its bytes changed."""
    try:
        record = json.loads(content)
    except ValueError:
        return None
    return record if durable.is_intact(record) else None


def _copy_durably(source: Path, target: Path, file_names: list[str]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for file_name in file_names:
        (target / file_name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / file_name, target / file_name)
        durable.sync(target / file_name)


@contextmanager
def fetched(output_uri: str, files: Mapping[str, Mapping[str, Json]]) -> Iterator[Path]:
    """Provide a local directory with these files of an output, each checked against its digest.

    Of a remote store it is a copy, which is gone after the block.

    Raises:
        UserError: a file is missing or is not what its manifest says, or its name leads out of the folder.
    """
    for file_name in files:  # before anything is written
        _check_is_below(output_uri, file_name)
    filesystem, base_path = fsspec.core.url_to_fs(output_uri)
    if filesystem.protocol in ("file", ("file", "local")):
        _check(output_uri, Path(base_path), files)
        yield Path(base_path)
        return
    with tempfile.TemporaryDirectory(prefix="openba-model-") as copy_folder:
        for file_name in files:
            target_file = Path(copy_folder) / file_name
            target_file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # reported by the check
                filesystem.get_file(f"{base_path}/{file_name}", str(target_file))
        _check(output_uri, Path(copy_folder), files)
        yield Path(copy_folder)


def _check_is_below(uri: str, file_name: str) -> None:
    """Refuse a file's name that leads out of the folder it is joined to, on any system.

    Raises:
        UserError: the name is absolute or has a part such as `..`.
    """
    name_parts = file_name.replace("\\", "/").split("/")
    if "\0" in file_name or ":" in name_parts[0] or {"", ".", ".."} & set(name_parts):
        raise UserError(f"{uri}: file name {file_name!r} leads out of its folder; do not trust who wrote it")


def _check(uri: str, local_folder: Path, files: Mapping[str, Mapping[str, Json]]) -> None:
    for name, entry in files.items():
        try:
            digest = _digest_of_state(local_folder / name)
        except FileNotFoundError:
            raise UserError(f"{uri}/{name}: missing; run the pipeline again to rebuild it") from None
        if digest != entry["sha256"]:
            raise UserError(
                f"{uri}/{name}: damaged (digest differs from the manifest); delete {uri} and run again"
            )


_DIGESTS: dict[tuple[str, int, int, int], str] = {}
"""Digest by path, inode, size and time of change: a file that has not changed is read once per process."""


def _digest_of_state(path: Path) -> str:
    file_status = path.stat()
    # The inode too: a file that was replaced within the clock's resolution has another.
    file_state = (str(path), file_status.st_ino, file_status.st_size, file_status.st_mtime_ns)
    if file_state not in _DIGESTS:
        _DIGESTS[file_state] = durable.sha256(path)
    return _DIGESTS[file_state]


def drift(step: Step, store: Store) -> dict[str, tuple[Any, Any]]:
    """Field-by-field difference (then, now) from the newest build of this name; {} if none."""
    earlier_records = store.siblings(step.name)
    if not earlier_records:
        return {}
    old = flatten(earlier_records[-1]["identity"])
    new = flatten(step.identity)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


Runner = Callable[[Step, Build], Mapping[str, Json] | None]
"""Runs a step's function where its kind belongs and returns its facts."""


def run_here(step: Step, build: Build) -> Mapping[str, Json] | None:
    """Call the function in this process: the plainest runner."""
    return step.kind.load()(build)


def materialize(step: Step, store: Store, runtime: Any = None, run_step: Runner = run_here) -> JsonObject:
    """Build the step unless it is already built; return its manifest.

    An output that was built but not published, because the process was killed or the store refused it, is
    published without building it again.

    Raises:
        UserError: an input is not built or damaged, storage is full or not writable, or another process
            builds the same step.
    """
    failing_folder = store.work
    try:
        with _only_builder(store.work / f"{step.key}.lock", step):
            # Asked under the lock: another process may have finished it since the caller looked.
            if (record := store.manifest(step)) is not None:
                return record
            if (record := store.unpublished(step)) is None:
                record = _build(step, store, runtime, run_step)
            failing_folder = Path(store.base)
            store.publish(step, record)
            return record
    except OSError as error:
        raise durable.storage_error(error, failing_folder) or error from error


def _build(step: Step, store: Store, runtime: Any, run_step: Runner) -> JsonObject:
    """Run the step's function in the work folder and leave the manifest there; return the manifest."""
    missing = [key for key, parent in step.inputs.items() if store.manifest(parent) is None]
    if missing:
        raise UserError(f"{step.name}: inputs not built: {', '.join(missing)}; run the pipeline from there")
    input_folders = {key: store.verified_path(parent) for key, parent in step.inputs.items()}
    work_folder = store.work / step.key
    if not step.kind.resumable:
        shutil.rmtree(work_folder, ignore_errors=True)
    started_at = time.time()
    clock_start = time.monotonic()
    try:
        work_folder.mkdir(parents=True, exist_ok=True)
        # Left by a build whose publishing failed; it must not vouch for the files of this one.
        (work_folder / MANIFEST).unlink(missing_ok=True)
        facts = dict(run_step(step, Build(work_folder, step.recipe, input_folders, runtime)) or {})
        return _record(step, work_folder, facts, started_at, time.monotonic() - clock_start)
    except OSError as error:
        if not step.kind.resumable:
            shutil.rmtree(work_folder, ignore_errors=True)
        raise durable.storage_error(error, work_folder) or error from error


def _record(
    step: Step, work_folder: Path, facts: JsonObject, started_at: float, seconds: float
) -> JsonObject:
    """Flush all files of the output, then write and return its manifest."""
    file_names = (path.relative_to(work_folder) for path in sorted(work_folder.rglob("*")) if path.is_file())
    files = {}
    for name in (name for name in file_names if name.parts[0] not in step.kind.scratch):
        durable.sync(work_folder / name)
        files[str(name)] = {
            "bytes": (work_folder / name).stat().st_size,
            "sha256": durable.sha256(work_folder / name),
        }
    record_body = {
        "name": step.name,
        "fingerprint": step.fingerprint,
        "identity": step.identity,
        "facts": facts,
        "started": started_at,
        "finished": time.time(),
        "seconds": round(seconds, 3),
        "files": files,
    }
    record: JsonObject = durable.signed(json.loads(durable.dumps(record_body)))
    durable.write_text(work_folder / MANIFEST, json.dumps(record, indent=2))
    return record


@contextmanager
def _only_builder(lock_path: Path, step: Step) -> Iterator[None]:
    """Hold the step's lock; the kernel releases it when the holder dies, however it dies."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open("a+") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock_file.seek(0)
            raise UserError(
                f"{step.key}: process {lock_file.read().strip() or '?'} builds it; wait for it or end it"
            ) from None
        lock_file.truncate(0)
        lock_file.write(str(os.getpid()))
        lock_file.flush()
        yield
