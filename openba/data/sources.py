"""Read sources: installed packages, Parquet, JSON lines, plain text and Hugging Face data sets.

Owns the way from any of these to the schema of `openba.data.schema`, and what of the outside
world enters a source's fingerprint. It filters nothing: that is `openba.data.clean`.
"""

from __future__ import annotations

import base64
import difflib
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from openba.artifacts import Build
from openba.data import csv_files, exams, files, json_files, warc_files
from openba.data.articles import article
from openba.data.quarantine import QUARANTINE, Bad, Quarantine, Tell, refuse
from openba.data.samples import READERS, Reader
from openba.data.samples.locate import INSTALL
from openba.data.schema import DOCUMENTS, SCHEMA, write_documents
from openba.errors import UserError
from openba.recipes.data import (
    FileSource,
    HuggingFaceSource,
    PackageSource,
    SourceRecipe,
    SourceStep,
    TaskRecipe,
)

_MISSING = object()
_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 16 * 2**20  # a batch of books still fits in memory


_READERS = {
    "jsonl": json_files.records,
    "csv": csv_files.records,
    "warc": warc_files.records,
    "bio": files.tagged_sentences,
    "exam": exams.questions,
}


class _Document(NamedTuple):
    file: str
    row: int | None
    id: str
    text: str
    extra: dict[str, Any]


def build(build: Build) -> dict[str, Any]:
    """Step `source-NAME`: write documents.parquet, and quarantine.parquet if something cannot be read.

    Returns:
        Facts: documents, bytes (UTF-8, of the texts), licence, quarantined (see `Quarantine.close`).

    Raises:
        UserError: a file is missing, an id occurs twice, or nothing can be read.
    """
    step: SourceStep = build.recipe
    quarantine = Quarantine(build.out / QUARANTINE)
    for bad in unread_files(step.source):
        quarantine(bad)
    has_text = getattr(step.source, "text_field", None) is not None
    batches = read(step.name, step.source, quarantine, skip_empty=has_text)
    documents, size = write_documents(build.out / DOCUMENTS, batches)
    quarantined = quarantine.close()
    if not documents:
        raise UserError(f"source {step.name}: {quarantine.summary()}")
    return {
        "documents": documents,
        "bytes": size,
        "licence": step.source.licence,
        "quarantined": quarantined,
    }


def unread_files(recipe: SourceRecipe) -> list[Bad]:
    """Return the files of a source's folder that are not read, each with the reason."""
    return files.unread(recipe.path, recipe.adapter) if isinstance(recipe, FileSource) else []


def read(
    name: str, recipe: SourceRecipe, tell: Tell = refuse, skip_empty: bool = False
) -> Iterator[pa.RecordBatch]:
    """The source's documents in batches of the common schema, in the order of its files and rows.

    Args:
        name: the source's name.
        recipe: the source.
        tell: called with files and rows that cannot be read; as long as it raises nothing the rest is read.
        skip_empty: set documents without text aside: a corpus has no use for them, a task may have.

    Raises:
        UserError: a file is missing, an id occurs twice, or, unless something was told, there is no document.
    """
    try:
        yield from _batches(name, recipe, tell, skip_empty)
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


def task_files(task: TaskRecipe) -> dict[str, Path]:
    """Name -> local file of all that a task reads: its source's files and those beside it.

    Raises:
        UserError: a file is missing.
    """
    source: list[tuple[str, Path]] = []
    if isinstance(task.source, FileSource):
        source = files.find(task.source.path, task.source.adapter)
    elif isinstance(task.source, HuggingFaceSource) and (folder := _local_folder(task.source)) is not None:
        source = files.below(folder)
    beside = [entry for template in task.beside.values() for entry in _beside(template)]
    named = [(f"source/{name}", path) for name, path in source]
    return dict(named + [(f"beside/{name}", path) for name, path in beside])


def task_state(task: TaskRecipe) -> dict[str, Any]:
    """The same of a task: its source's, and that of the files beside it.

    Raises:
        UserError: see `outside_state`; a file beside is missing.
    """
    state = outside_state(task.source)
    for field, template in task.beside.items():
        state[f"beside.{field}"] = files.digest(_beside(template))
    return state


def _beside(template: str) -> list[tuple[str, Path]]:
    return files.find(re.sub(r"\{.*?\}", "*", template), "text")


def _batches(name: str, recipe: SourceRecipe, tell: Tell, skip_empty: bool) -> Iterator[pa.RecordBatch]:
    if recipe.limit is not None and recipe.limit < 1:
        raise UserError(f"limit: {recipe.limit} keeps nothing; give 1 or more, or leave it out")
    seen: set[str] = set()
    batch: list[dict[str, str]] = []
    size = 0
    told: list[None] = []

    def tell_and_note(bad: Bad) -> None:
        told[:] = [None]
        tell(bad)

    for document in islice(_documents(recipe, tell_and_note), recipe.limit):
        if skip_empty and not document.text.strip():
            tell_and_note(Bad(document.file, document.row, "the text is empty; remove the row"))
            continue
        if document.id in seen:
            refuse(
                Bad(document.file, document.row, f"id {document.id!r} occurs twice; give a unique id_field")
            )
        seen.add(document.id)
        batch.append(_row(name, recipe.language, document))
        size += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield pa.RecordBatch.from_pylist(batch, SCHEMA)
            batch, size = [], 0
    if not seen and not told:
        raise UserError("there is no document in it; check the path")
    if batch:
        yield pa.RecordBatch.from_pylist(batch, SCHEMA)


def _row(name: str, language: str, document: _Document) -> dict[str, str]:
    try:
        extra = orjson.dumps(document.extra, default=_plain).decode()
    except TypeError as error:
        told = f"a field is no JSON ({error}); leave it out of the file"
        raise UserError(str(Bad(document.file, document.row, told))) from None
    return {"id": document.id, "text": document.text, "language": language, "source": name, "extra": extra}


def _plain(value: Any) -> Any:
    """Values of Arrow that JSON lacks; orjson itself knows dates and turns NaN into null."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if type(value).__module__ in ("decimal", "datetime"):
        return str(value)
    raise TypeError(f"type {type(value).__name__}")


def _documents(recipe: SourceRecipe, tell: Tell) -> Iterator[_Document]:
    if isinstance(recipe, PackageSource):
        return _from_package(recipe)
    if isinstance(recipe, HuggingFaceSource):
        return _from_hugging_face(recipe, tell)
    return _from_text(recipe, tell) if recipe.adapter == "text" else _from_records(recipe, tell)


def _from_package(recipe: PackageSource) -> Iterator[_Document]:
    reader = _reader(recipe)
    _version(recipe.package)
    for identifier, text, extra in reader():
        yield _Document(f"{recipe.package} {recipe.reader}", None, identifier, text, extra)


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


def _from_text(recipe: FileSource, tell: Tell) -> Iterator[_Document]:
    if recipe.id_field is not None:
        raise UserError("id_field: plain text has no fields; leave it out, the id is the file's name")
    for name, path in files.find(recipe.path, recipe.adapter):
        text = files.text(path, tell, recipe.encoding)
        if text is None:
            continue
        document = _extracted(_Document(str(path), None, name, text, {}), recipe)
        if isinstance(document, str):
            tell(Bad(str(path), None, document))
        else:
            yield document


def _from_records(recipe: FileSource, tell: Tell) -> Iterator[_Document]:
    for name, path in files.find(recipe.path, recipe.adapter):
        if recipe.adapter == "parquet" or path.suffix.lower() == ".parquet":
            rows = files.parquet_rows(path, tell, partial(_fault_of_columns, recipe=recipe))
        else:
            rows = _READERS[recipe.adapter](path, tell, recipe.encoding)
        yield from _of_rows(rows, recipe, str(path), name, tell)


def _fault_of_columns(schema: pa.Schema, recipe: FileSource) -> str | None:
    """Why no row of a Parquet file can be a document."""
    for key in schema.names:
        if schema.names.count(key) > 1:
            return f"column {key!r} occurs twice; rename or remove one"
    for key in filter(None, (recipe.text_field, recipe.id_field)):
        if key not in schema.names and key.partition(".")[0] not in schema.names:
            return f"no field {key!r}; {_choose(key, schema.names)}"
    if recipe.text_field is None or recipe.text_field not in schema.names:  # nested: each row is looked into
        return None
    kind = schema.field(recipe.text_field).type
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return None if any(test(held) for test in tests) else f"{recipe.text_field!r} is {kind}, not a string"


def _of_rows(
    rows: Iterator[tuple[int, dict[str, Any]]],
    recipe: FileSource | HuggingFaceSource,
    where: str,
    name: str,
    tell: Tell,
) -> Iterator[_Document]:
    for row, fields in rows:
        found = _document(fields, recipe, where, row, f"{name}:{row}")
        if isinstance(found, _Document) and isinstance(recipe, FileSource):
            found = _extracted(found, recipe)
        if isinstance(found, str):
            tell(Bad(where, row, found))
        else:
            yield found


def _extracted(document: _Document, recipe: FileSource) -> _Document | str:
    """Return the document, its HTML replaced by the article if the source asks for it; or what is wrong."""
    if recipe.extract == "none" or document.extra.get("content_type") == "text/plain":
        return document
    text = article(document.text)
    return document._replace(text=text) if text else "no article is found in its HTML; remove the row"


def _from_hugging_face(recipe: HuggingFaceSource, tell: Tell) -> Iterator[_Document]:
    _local_folder(recipe)
    where = f"{recipe.path} [{recipe.split}]"
    rows = files.table_rows(_hugging_face_tables(recipe, where), where, tell)
    return _of_rows(rows, recipe, where, recipe.split, tell)


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
    fields: dict[str, Any], recipe: FileSource | HuggingFaceSource, file: str, row: int, position: str
) -> _Document | str:
    """Text and id taken out of a record, what is left is `extra`; or what is wrong with the record."""
    for key in filter(None, (recipe.text_field, recipe.id_field)):
        if _field(fields, key) is _MISSING:
            return f"no field {key!r}; {_choose(key, fields)}"
    identifier = position if recipe.id_field is None else _field(fields, recipe.id_field)
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        return f"{recipe.id_field!r} is {type(identifier).__name__}, not a string or integer"
    text = "" if recipe.text_field is None else _field(fields, recipe.text_field)
    if not isinstance(text, str):
        return f"{recipe.text_field!r} is {type(text).__name__}, not a string; remove the row"
    extra = {key: value for key, value in fields.items() if key not in (recipe.text_field, recipe.id_field)}
    return _Document(file, row, str(identifier), text, extra)


def _field(fields: dict[str, Any], key: str) -> Any:
    """Return a field by its name or by a path of names joined by dots; `_MISSING` if it is not there."""
    if key in fields:
        return fields[key]
    value: Any = fields
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _choose(wrong: str, known: Iterable[str]) -> str:
    names = sorted(map(str, known))
    close = difflib.get_close_matches(wrong, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
