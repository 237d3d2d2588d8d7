"""Read sources: installed packages, Parquet, JSON lines, plain text and Hugging Face data sets.

Owns the way from any of these to the schema of `openba.data.schema`, and what of the outside
world enters a source's fingerprint. It filters nothing: that is `openba.data.clean`.
"""

from __future__ import annotations

import base64
import difflib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from openba.artifacts import Build
from openba.data import files
from openba.data.samples import READERS, Reader
from openba.data.samples.locate import INSTALL
from openba.data.schema import DOCUMENTS, SCHEMA, write_documents
from openba.errors import UserError
from openba.recipes.data import FileSource, HuggingFaceSource, PackageSource, SourceRecipe, SourceStep

_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 16 * 2**20  # a batch of books still fits in memory


class _Document(NamedTuple):
    where: str  # for messages: file and row
    id: str
    text: str
    extra: dict[str, Any]


def build(build: Build) -> dict[str, Any]:
    """Step `source-NAME`: write documents.parquet.

    Returns:
        Facts: documents, bytes (UTF-8, of the texts), licence.

    Raises:
        UserError: see `read`.
    """
    step: SourceStep = build.recipe
    documents, size = write_documents(build.out / DOCUMENTS, read(step.name, step.source))
    return {"documents": documents, "bytes": size, "licence": step.source.licence}


def read(name: str, recipe: SourceRecipe) -> Iterator[pa.RecordBatch]:
    """The source's documents in batches of the common schema, in the order of its files and rows.

    Raises:
        UserError: a file, row or field is missing or broken, an id occurs twice, or there is no
            document at all; the message names file and row.
    """
    try:
        yield from _batches(name, recipe)
    except UserError as error:
        raise UserError(f"source {name}: {error}") from None


def outside_state(recipe: SourceRecipe) -> dict[str, Any]:
    """What identifies the text beside the recipe, as JSON values, for the step's fingerprint.

    Packages: the installed version. Files: number and digest of names, sizes and times of change.
    Hugging Face: path, name and revision, with the files' digest when the path is a local folder.

    Raises:
        UserError: the package is not installed, a file is missing, or a hub data set has no revision.
    """
    if isinstance(recipe, PackageSource):
        _reader(recipe)
        return {recipe.package: _version(recipe.package)}
    if isinstance(recipe, FileSource):
        return files.digest(files.find(recipe.path, recipe.adapter))
    state = {"path": recipe.path, "name": recipe.name, "revision": recipe.revision}
    folder = _local_folder(recipe)
    return state if folder is None else {**state, **files.digest(files.below(folder))}


def _batches(name: str, recipe: SourceRecipe) -> Iterator[pa.RecordBatch]:
    if recipe.limit is not None and recipe.limit < 1:
        raise UserError(f"limit: {recipe.limit} keeps nothing; give 1 or more, or leave it out")
    seen: set[str] = set()
    batch: list[dict[str, str]] = []
    size = 0
    for document in islice(_documents(recipe), recipe.limit):
        if document.id in seen:
            raise UserError(f"{document.where}: id {document.id!r} occurs twice; give a unique id_field")
        seen.add(document.id)
        batch.append(_row(name, recipe.language, document))
        size += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield pa.RecordBatch.from_pylist(batch, SCHEMA)
            batch, size = [], 0
    if not seen:
        raise UserError("there is no document in it; check the path")
    if batch:
        yield pa.RecordBatch.from_pylist(batch, SCHEMA)


def _row(name: str, language: str, document: _Document) -> dict[str, str]:
    try:
        extra = orjson.dumps(document.extra, default=_plain).decode()
    except TypeError as error:
        raise UserError(f"{document.where}: a field is no JSON ({error}); leave it out of the file") from None
    return {"id": document.id, "text": document.text, "language": language, "source": name, "extra": extra}


def _plain(value: Any) -> Any:
    """Values of Arrow that JSON lacks; orjson itself knows dates and turns NaN into null."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if type(value).__module__ in ("decimal", "datetime"):
        return str(value)
    raise TypeError(f"type {type(value).__name__}")


def _documents(recipe: SourceRecipe) -> Iterator[_Document]:
    if isinstance(recipe, PackageSource):
        return _from_package(recipe)
    if isinstance(recipe, HuggingFaceSource):
        return _from_hugging_face(recipe)
    return _from_text(recipe) if recipe.adapter == "text" else _from_records(recipe)


def _from_package(recipe: PackageSource) -> Iterator[_Document]:
    reader = _reader(recipe)
    _version(recipe.package)
    for identifier, text, extra in reader():
        yield _Document(f"{recipe.package} {recipe.reader}", identifier, text, extra)


def _reader(recipe: PackageSource) -> Reader:
    readers = READERS.get(recipe.package)
    if readers is None:
        raise UserError(f"package: {recipe.package!r} has no reader; {_choose(recipe.package, READERS)}")
    if recipe.reader not in readers:
        known = _choose(recipe.reader, readers)
        raise UserError(f"reader: {recipe.package} has no {recipe.reader!r}; {known}")
    return readers[recipe.reader]


def _version(package: str) -> str:
    if package == "python":
        return "{}.{}.{}".format(*sys.version_info)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"package {package} is not installed; {INSTALL}") from None


def _from_text(recipe: FileSource) -> Iterator[_Document]:
    if recipe.id_field is not None:
        raise UserError("id_field: plain text has no fields; leave it out, the id is the file's name")
    for name, path in files.find(recipe.path, recipe.adapter):
        yield _Document(str(path), name, files.text(path), {})


def _from_records(recipe: FileSource) -> Iterator[_Document]:
    rows = files.parquet_rows if recipe.adapter == "parquet" else files.json_lines
    for name, path in files.find(recipe.path, recipe.adapter):
        for row, fields in rows(path):
            yield _document(fields, recipe, f"{path}: row {row}", f"{name}:{row}")


def _from_hugging_face(recipe: HuggingFaceSource) -> Iterator[_Document]:
    _local_folder(recipe)
    where = f"{recipe.path} [{recipe.split}]"
    for row, fields in files.table_rows(_hugging_face_tables(recipe, where), where):
        yield _document(fields, recipe, f"{where}: row {row}", f"{recipe.split}:{row}")


def _hugging_face_tables(recipe: HuggingFaceSource, where: str) -> Iterator[pa.Table]:
    """Arrow tables as the files hold them: no image or sound is decoded, no code of the data set runs."""
    import datasets  # a second to import, so only where it is used

    try:
        # Streaming leaves no second copy in a cache. The library has run no script since its version 4.
        data = datasets.load_dataset(
            recipe.path, recipe.name, split=recipe.split, revision=recipe.revision, streaming=True
        )
        yield from data.with_format("arrow").iter(batch_size=files.BATCH_ROWS)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: cannot be read ({files.one_line(error)})") from None


def _local_folder(recipe: HuggingFaceSource) -> Path | None:
    """The folder if the path names one; None for a data set of the hub, which needs a revision."""
    folder = Path(recipe.path)
    if folder.is_dir():
        return folder
    if recipe.revision is None:
        raise UserError(
            f"revision: {recipe.path} is no local folder, and a data set of the hub needs its commit, "
            "so that the same recipe means the same text"
        )
    return None


def _document(
    fields: dict[str, Any], recipe: FileSource | HuggingFaceSource, where: str, position: str
) -> _Document:
    """Text and id taken out of a record; what is left is `extra`."""
    for key in filter(None, (recipe.text_field, recipe.id_field)):
        if key not in fields:
            raise UserError(f"{where}: no field {key!r}; {_choose(key, fields)}")
    identifier = position if recipe.id_field is None else fields[recipe.id_field]
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        kind = type(identifier).__name__
        raise UserError(f"{where}: {recipe.id_field!r} is {kind}, not a string or integer")
    text = "" if recipe.text_field is None else fields[recipe.text_field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise UserError(f"{where}: {recipe.text_field!r} is {kind}, not a string; remove the row")
    extra = {key: value for key, value in fields.items() if key not in (recipe.text_field, recipe.id_field)}
    return _Document(where, str(identifier), text, extra)


def _choose(wrong: str, known: Iterable[str]) -> str:
    names = sorted(map(str, known))
    close = difflib.get_close_matches(wrong, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
