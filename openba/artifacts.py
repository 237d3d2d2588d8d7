"""Steps, fingerprints, the store and manifests: what an output *is*, apart from where it was made.

A `Step` is inert: its identity is its name, its kind's version, its recipe, the state of any
files it reads from outside, and the fingerprints of its inputs. Machine facts (workers, micro
batches, paths, log cadence) travel in a `Runtime` and never enter the hash.

    work/<name>/<fingerprint>/                  being built; a resumable step continues in it
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

from openba.config import flatten
from openba.errors import UserError

MANIFEST = "manifest.json"


class Recipe(BaseModel):
    """Base of every identity-bearing config: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Runtime(BaseModel):
    """Base of every execution-only config. Never fingerprinted."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Kind:
    """A sort of step: the function that builds it and where that function runs.

    `flow`: in the process that runs the pipeline. `job`: as a Ray job. `gang`: on every worker
    of a Ray Train group inside a Ray job. Bump `version` when the function changes what it
    computes; source text is never hashed, so a log line does not cost 10,000 GPU-hours.
    """

    function: str  # "package.module:function", imported only where it runs
    version: str
    place: Literal["flow", "job", "gang"] = "flow"
    resumable: bool = False

    def load(self) -> Callable[[Build], Mapping[str, Any] | None]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, eq=False)
class Step:
    """A named, fingerprinted unit of work."""

    name: str
    kind: Kind
    recipe: Recipe
    inputs: Mapping[str, Step] = field(default_factory=dict)
    outside: Mapping[str, Any] = field(default_factory=dict)  # state of files no step has made
    config: str = ""  # where the recipe stands in the pipeline's config, for `openba show`

    @cached_property
    def identity(self) -> dict[str, Any]:
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
        """This step and everything upstream of it, inputs first, each once."""
        seen: set[str] = set()

        def visit(step: Step) -> Iterator[Step]:
            for parent in step.inputs.values():
                yield from visit(parent)
            if step.name not in seen:
                seen.add(step.name)
                yield step

        yield from visit(self)


@dataclass(frozen=True)
class Build:
    """What a step's function is given."""

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

    def __init__(self, root: str | Path, work: Path) -> None:
        self.root, self.work = str(root), Path(work)
        self.fs, self.base = fsspec.core.url_to_fs(self.root)
        self.remote = "file" not in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )

    def uri(self, step: Step) -> str:
        """The address of the step's output, for people and registries."""
        return f"{self.root.rstrip('/')}/{step.key}"

    def manifest(self, step: Step) -> dict[str, Any] | None:
        """The step's manifest if its output is complete and every recorded file is still there."""
        record = self._read(f"{step.key}/{MANIFEST}")
        if record is None:
            return None
        for name, entry in record["files"].items():
            try:
                if self.fs.size(f"{self.base}/{step.key}/{name}") != entry["bytes"]:
                    return None
            except FileNotFoundError:
                return None
        return record

    def path(self, step: Step) -> Path:
        """A local directory that holds the complete output; fetched first if the root is remote."""
        if not self.remote:
            return Path(self.base) / step.key
        local = self.work / ".cache" / step.key
        if not (local / MANIFEST).exists():
            for remote in self.fs.find(f"{self.base}/{step.key}"):
                if name := remote.partition(f"{step.key}/")[2].rstrip("/"):
                    _check_is_below(self.uri(step), name)
            partial = local.with_name(f"{local.name}.{os.getpid()}")
            self.fs.get(f"{self.base}/{step.key}/", str(partial) + "/", recursive=True)
            shutil.rmtree(local, ignore_errors=True)
            partial.rename(local)
        return local

    def siblings(self, name: str) -> list[dict[str, Any]]:
        """Manifests of every build of this step name, oldest first."""
        found = (
            self._read(str(path)[len(self.base) + 1 :])
            for path in self.fs.glob(f"{self.base}/{name}/*/{MANIFEST}")
        )
        return sorted((r for r in found if r), key=lambda record: record["finished"])

    def publish(self, step: Step, built: Path, record: dict[str, Any]) -> None:
        """Make a built directory the step's complete output."""
        if self.remote:
            self.fs.put(f"{built}/", f"{self.base}/{step.key}/", recursive=True)
            with self.fs.open(f"{self.base}/{step.key}/{MANIFEST}", "w") as file:
                json.dump(record, file, indent=2)
            shutil.rmtree(built)
            return
        _write_durably(built / MANIFEST, json.dumps(record, indent=2))
        final = Path(self.base) / step.key
        shutil.rmtree(final, ignore_errors=True)  # a damaged earlier output
        final.parent.mkdir(parents=True, exist_ok=True)
        built.rename(final)

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            return json.loads(self.fs.cat_file(f"{self.base}/{key}"))
        except FileNotFoundError:
            return None
        except ValueError:  # a manifest cut short by a full disk or a crash: not complete
            return None


@contextmanager
def fetched(uri: str, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    """A local directory with these files of an output, each checked against its digest.

    Of a remote store it is a copy, which is gone after the block.

    Raises:
        UserError: a file is missing or is not what its manifest says, or its name leads out of the folder.
    """
    for name in files:  # before anything is written
        _check_is_below(uri, name)
    fs, base = fsspec.core.url_to_fs(uri)
    if fs.protocol in ("file", ("file", "local")):
        _check(uri, Path(base), files)
        yield Path(base)
        return
    with tempfile.TemporaryDirectory(prefix="openba-model-") as copy:
        for name in files:
            target = Path(copy) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # told by the check
                fs.get_file(f"{base}/{name}", str(target))
        _check(uri, Path(copy), files)
        yield Path(copy)


def _check_is_below(uri: str, name: str) -> None:
    """Refuse a file's name that leads out of the folder it is joined to, on any system.

    Raises:
        UserError: the name is absolute or has a part such as `..`.
    """
    parts = name.replace("\\", "/").split("/")
    if "\0" in name or ":" in parts[0] or {"", ".", ".."} & set(parts):
        raise UserError(f"{uri}: file name {name!r} leads out of its folder; do not trust who wrote it")


def _check(uri: str, local: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, entry in files.items():
        try:
            digest = _sha256(local / name)
        except FileNotFoundError:
            raise UserError(f"{uri}/{name}: missing; run the pipeline again to rebuild it") from None
        if digest != entry["sha256"]:
            raise UserError(
                f"{uri}/{name}: damaged (digest differs from the manifest); delete {uri} and run again"
            )


def drift(step: Step, store: Store) -> dict[str, tuple[Any, Any]]:
    """Field-by-field difference (then, now) from the newest build of this name; {} if none."""
    siblings = store.siblings(step.name)
    if not siblings:
        return {}
    old, new = flatten(siblings[-1]["identity"]), flatten(step.identity)
    return {k: (old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)}


Runner = Callable[[Step, Build], Mapping[str, Any] | None]
"""Runs a step's function where its kind belongs and returns its facts."""


def run_here(step: Step, build: Build) -> Mapping[str, Any] | None:
    """The plainest runner: call the function in this process."""
    return step.kind.load()(build)


def materialize(step: Step, store: Store, runtime: Any = None, run: Runner = run_here) -> dict[str, Any]:
    """Build the step unless it is already built; return its manifest.

    Raises:
        UserError: an input is not built, the disk is full, or another process builds the same step.
    """
    with _only_builder(store.work / f"{step.key}.lock", step):
        if (record := store.manifest(step)) is not None:
            return record
        missing = [key for key, parent in step.inputs.items() if store.manifest(parent) is None]
        if missing:
            raise UserError(
                f"{step.name}: inputs not built: {', '.join(missing)}; run the pipeline from there"
            )
        out = store.work / step.key
        if not step.kind.resumable:
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        build = Build(out, step.recipe, {k: store.path(p) for k, p in step.inputs.items()}, runtime)
        started = time.time()
        try:
            facts = dict(run(step, build) or {})
            record = _record(step, out, facts, started)
            store.publish(step, out, record)
        except OSError as error:
            if not step.kind.resumable:
                shutil.rmtree(out, ignore_errors=True)
            raise full_disk(error, out) or error from error
        return record


def _record(step: Step, out: Path, facts: dict[str, Any], started: float) -> dict[str, Any]:
    files = sorted(f for f in out.rglob("*") if f.is_file())
    return {
        "name": step.name,
        "fingerprint": step.fingerprint,
        "identity": step.identity,
        "facts": facts,
        "started": started,
        "finished": time.time(),
        "seconds": round(time.time() - started, 3),
        "files": {str(f.relative_to(out)): {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files},
    }


def full_disk(error: BaseException, folder: Path) -> UserError | None:
    """The line for a user if the error says that no space is left below `folder`, else None."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{folder}: no space left while writing; free some or move OPENBA_HOME")
    return None


@contextmanager
def _only_builder(lock: Path, step: Step) -> Iterator[None]:
    """Hold the step's lock; the kernel releases it when the holder dies, however it dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{step.key}: process {file.read().strip() or '?'} builds it; wait for that run or end it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
