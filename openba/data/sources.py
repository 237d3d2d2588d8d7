"""Read sources: installed packages, Parquet, JSON lines, plain text and Hugging Face data sets.

Converts all of them to the schema of `openba.data.schema`, without filtering, and determines which state
outside the pipeline (package versions, files) enters a source's fingerprint.
"""

from __future__ import annotations

import base64
import difflib
import importlib.metadata
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import orjson
import pyarrow as pa

from openba import durable
from openba.artifacts import Build
from openba.data import csv_files, exams, files, json_files, warc_files
from openba.data.articles import article
from openba.data.quarantine import (
    QUARANTINE,
    Quarantine,
    QuarantineFacts,
    Unreadable,
    UnreadableHandler,
    refuse,
)
from openba.data.samples import READERS, Reader
from openba.data.samples.locate import INSTALL
from openba.data.schema import DOCUMENTS, SCHEMA, write_documents
from openba.data.score_ranges import within
from openba.errors import UserError
from openba.json_types import JsonObject
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
_BATCH_CHARACTERS = 16 * 2**20  # bounds the memory for a batch of books

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
    extra: files.Fields


class Facts(TypedDict):
    """Facts that the step records in its manifest."""

    documents: int
    outside_score: int
    """Records that the source's `score` leaves out."""
    bytes: int
    """UTF-8 bytes of the texts."""
    licence: str
    quarantined: QuarantineFacts


def build(build: Build) -> Facts:
    """Write documents.parquet for a source, and quarantine.parquet if something cannot be read.

    Raises:
        UserError: a file is missing, an id occurs twice, or nothing can be read.
    """
    step: SourceStep = build.recipe
    quarantine = Quarantine(build.out / QUARANTINE)
    for skipped in unread_files(step.source):
        quarantine(skipped)
    has_text = getattr(step.source, "text_field", None) is not None
    left_out: Counter[str] = Counter()
    batches = read(step.name, step.source, quarantine, skip_empty=has_text, left_out=left_out)
    documents, text_bytes = write_documents(build.out / DOCUMENTS, batches)
    quarantined = quarantine.close()
    if not documents:
        raise UserError(f"source {step.name}: {quarantine.summary()}")
    return Facts(
        documents=documents,
        outside_score=left_out["score"],
        bytes=text_bytes,
        licence=step.source.licence,
        quarantined=quarantined,
    )


def unread_files(source_recipe: SourceRecipe) -> list[Unreadable]:
    """Return the files of a source's folder that are not read, each with the reason."""
    return (
        files.unread(source_recipe.path, source_recipe.adapter)
        if isinstance(source_recipe, FileSource)
        else []
    )


def read(
    source_name: str,
    source_recipe: SourceRecipe,
    on_unreadable: UnreadableHandler = refuse,
    skip_empty: bool = False,
    left_out: Counter[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the source's documents in batches of the common schema, in the order of its files and rows.

    Args:
        source_name: the source's name.
        source_recipe: the source.
        on_unreadable: called with files and rows that cannot be read; unless it raises, the rest is read.
        skip_empty: treat documents without text as unreadable. Records of labelled data may have no text.
        left_out: counts under `score` the records that the source's score leaves out.

    Raises:
        UserError: a file is missing, an id occurs twice, or there is neither a document nor anything
            unreadable.
    """
    counts = Counter[str]() if left_out is None else left_out
    try:
        yield from _batches(source_name, source_recipe, on_unreadable, skip_empty, counts)
    except UserError as error:
        raise UserError(f"source {source_name}: {error}") from None


def file_state(path: str | None) -> JsonObject:
    """Return the digest of a file given by path; a changed file is another fingerprint, a copy is not."""
    if path is None:
        return {}
    file = Path(path)
    if not file.is_file():
        return {"missing": True}  # planning works without it; building says what to do
    return {"sha256": durable.sha256(file)}


def outside_state(source_recipe: SourceRecipe) -> dict[str, Any]:
    """Return what identifies the text apart from the recipe, as JSON values for the step's fingerprint.

    Packages: the installed version. Files: number and digest of names, sizes and times of change.
    Hugging Face: path, name and revision, with the files' digest when the path is a local folder.

    Raises:
        UserError: the package is not installed, a file is missing, or a hub data set has no revision.
    """
    if isinstance(source_recipe, PackageSource):
        _reader(source_recipe)
        return {source_recipe.package: _version(source_recipe.package)}
    if isinstance(source_recipe, FileSource):
        return files.digest(files.find(source_recipe.path, source_recipe.adapter))
    state = {"path": source_recipe.path, "name": source_recipe.name, "revision": source_recipe.revision}
    local_folder = _local_folder(source_recipe)
    return state if local_folder is None else {**state, **files.digest(files.below(local_folder))}


def task_files(task: TaskRecipe) -> dict[str, Path]:
    """Return all local files that labelled data is read from, its source's and those beside it, by name.

    Raises:
        UserError: a file is missing.
    """
    source: list[tuple[str, Path]] = []
    if isinstance(task.source, FileSource):
        source = files.find(task.source.path, task.source.adapter)
    elif (
        isinstance(task.source, HuggingFaceSource)
        and (local_folder := _local_folder(task.source)) is not None
    ):
        source = files.below(local_folder)
    beside = [entry for template in task.beside.values() for entry in _beside(template)]
    named = [(f"source/{name}", path) for name, path in source]
    return dict(named + [(f"beside/{name}", path) for name, path in beside])


def task_state(task: TaskRecipe) -> dict[str, Any]:
    """Return `outside_state` of labelled data: its source's, and that of the files beside it.

    Raises:
        UserError: see `outside_state`; a file beside is missing.
    """
    state = outside_state(task.source)
    for field, template in task.beside.items():
        state[f"beside.{field}"] = files.digest(_beside(template))
    return state


def _beside(template: str) -> list[tuple[str, Path]]:
    return files.find(re.sub(r"\{.*?\}", "*", template), "text")


def _batches(
    source_name: str,
    source_recipe: SourceRecipe,
    on_unreadable: UnreadableHandler,
    skip_empty: bool,
    left_out: Counter[str],
) -> Iterator[pa.RecordBatch]:
    if source_recipe.limit is not None and source_recipe.limit < 1:
        raise UserError(f"limit: {source_recipe.limit} keeps nothing; give 1 or more, or leave it out")
    seen_ids: set[str] = set()
    batch: list[dict[str, str]] = []
    batch_characters = 0
    has_unreadable = False

    def handle(unreadable: Unreadable) -> None:
        nonlocal has_unreadable
        has_unreadable = True
        on_unreadable(unreadable)

    documents = _documents(source_recipe, handle)
    score = None if isinstance(source_recipe, PackageSource) else source_recipe.score
    if score is not None:
        documents = within(
            documents, score, lambda scored, name: _field(scored.extra, name), handle, left_out
        )
    for document in islice(documents, source_recipe.limit):
        if skip_empty and not document.text.strip():
            handle(Unreadable(document.file, document.row, "the text is empty; remove the row"))
            continue
        if document.id in seen_ids:
            reason = f"id {document.id!r} occurs twice; give a unique id_field"
            refuse(Unreadable(document.file, document.row, reason))
        # In memory: removals and the mixture refer to documents by id.
        seen_ids.add(document.id)
        batch.append(_row(source_name, source_recipe.language, document))
        batch_characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or batch_characters >= _BATCH_CHARACTERS:
            yield pa.RecordBatch.from_pylist(batch, SCHEMA)
            batch = []
            batch_characters = 0
    if not seen_ids and not has_unreadable:
        raise UserError("there is no document in it; check the path")
    if batch:
        yield pa.RecordBatch.from_pylist(batch, SCHEMA)


def _row(source_name: str, language: str, document: _Document) -> dict[str, str]:
    try:
        extra = orjson.dumps(document.extra, default=_as_json).decode()
    except TypeError as error:
        reason = f"a field is no JSON ({error}); leave it out of the file"
        raise UserError(str(Unreadable(document.file, document.row, reason))) from None
    return {
        "id": document.id,
        "text": document.text,
        "language": language,
        "source": source_name,
        "extra": extra,
    }


def _as_json(value: object) -> str:
    """Return a string for values of Arrow that JSON lacks; orjson itself handles dates and NaN."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if type(value).__module__ in ("decimal", "datetime"):
        return str(value)
    raise TypeError(f"type {type(value).__name__}")


def _documents(source_recipe: SourceRecipe, on_unreadable: UnreadableHandler) -> Iterator[_Document]:
    if isinstance(source_recipe, PackageSource):
        return _from_package(source_recipe)
    if isinstance(source_recipe, HuggingFaceSource):
        return _from_hugging_face(source_recipe, on_unreadable)
    return (
        _from_text(source_recipe, on_unreadable)
        if source_recipe.adapter == "text"
        else _from_records(source_recipe, on_unreadable)
    )


def _from_package(source_recipe: PackageSource) -> Iterator[_Document]:
    reader = _reader(source_recipe)
    _version(source_recipe.package)
    for identifier, text, extra in reader():
        yield _Document(f"{source_recipe.package} {source_recipe.reader}", None, identifier, text, extra)


def _reader(source_recipe: PackageSource) -> Reader:
    readers = READERS.get(source_recipe.package)
    if readers is None:
        raise UserError(
            f"package: {source_recipe.package!r} has no reader; {_choose(source_recipe.package, READERS)}"
        )
    if source_recipe.reader not in readers:
        suggestion = _choose(source_recipe.reader, readers)
        raise UserError(f"reader: {source_recipe.package} has no {source_recipe.reader!r}; {suggestion}")
    return readers[source_recipe.reader]


def _version(package: str) -> str:
    if package == "python":
        return "{}.{}.{}".format(*sys.version_info)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"package {package} is not installed; {INSTALL}") from None


def _from_text(source_recipe: FileSource, on_unreadable: UnreadableHandler) -> Iterator[_Document]:
    if source_recipe.id_field is not None:
        raise UserError("id_field: plain text has no fields; leave it out, the id is the file's name")
    for file_name, path in files.find(source_recipe.path, source_recipe.adapter):
        text = files.text(path, on_unreadable, source_recipe.encoding)
        if text is None:
            continue
        document = _extract_article(_Document(str(path), None, file_name, text, {}), source_recipe)
        if isinstance(document, str):
            on_unreadable(Unreadable(str(path), None, document))
        else:
            yield document


def _from_records(source_recipe: FileSource, on_unreadable: UnreadableHandler) -> Iterator[_Document]:
    for file_name, path in files.find(source_recipe.path, source_recipe.adapter):
        if source_recipe.adapter == "parquet" or path.suffix.lower() == ".parquet":
            rows = files.parquet_rows(
                path, on_unreadable, partial(_fault_of_columns, source_recipe=source_recipe)
            )
        else:
            rows = _READERS[source_recipe.adapter](path, on_unreadable, source_recipe.encoding)
        yield from _of_rows(rows, source_recipe, str(path), file_name, on_unreadable)


def _fault_of_columns(schema: pa.Schema, source_recipe: FileSource) -> str | None:
    """Return why no row of a Parquet file can be a document, None if rows can."""
    for field_name in schema.names:
        if schema.names.count(field_name) > 1:
            return f"column {field_name!r} occurs twice; rename or remove one"
    for field_name in filter(None, (source_recipe.text_field, source_recipe.id_field)):
        if field_name not in schema.names and field_name.partition(".")[0] not in schema.names:
            return f"no field {field_name!r}; {_choose(field_name, schema.names)}"
    if (
        source_recipe.text_field is None or source_recipe.text_field not in schema.names
    ):  # nested: each row is looked into
        return None
    column_type = schema.field(source_recipe.text_field).type
    value_type = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if any(is_string(value_type) for is_string in tests):
        return None
    return f"{source_recipe.text_field!r} is {column_type}, not a string"


def _of_rows(
    rows: Iterator[tuple[int, dict[str, Any]]],
    source_recipe: FileSource | HuggingFaceSource,
    where: str,
    file_name: str,
    on_unreadable: UnreadableHandler,
) -> Iterator[_Document]:
    for row_number, fields in rows:
        document = _document(fields, source_recipe, where, row_number, f"{file_name}:{row_number}")
        if isinstance(document, _Document) and isinstance(source_recipe, FileSource):
            document = _extract_article(document, source_recipe)
        if isinstance(document, str):
            on_unreadable(Unreadable(where, row_number, document))
        else:
            yield document


def _extract_article(document: _Document, source_recipe: FileSource) -> _Document | str:
    """Return the document, with the article of its HTML if the source asks for it, or what is wrong."""
    if source_recipe.extract == "none" or document.extra.get("content_type") == "text/plain":
        return document
    text = article(document.text)
    return document._replace(text=text) if text else "no article is found in its HTML; remove the row"


def _from_hugging_face(
    source_recipe: HuggingFaceSource, on_unreadable: UnreadableHandler
) -> Iterator[_Document]:
    _local_folder(source_recipe)
    where = f"{source_recipe.path} [{source_recipe.split}]"
    rows = files.table_rows(_hugging_face_tables(source_recipe, where), where, on_unreadable)
    return _of_rows(rows, source_recipe, where, source_recipe.split, on_unreadable)


def _hugging_face_tables(source_recipe: HuggingFaceSource, where: str) -> Iterator[pa.Table]:
    """Yield Arrow tables without decoding images or sound, and without running code of the data set."""
    import datasets  # takes a second to import, so only where it is used

    try:
        # Streaming makes no second copy in a cache. Since version 4 the library runs no scripts.
        data = datasets.load_dataset(
            source_recipe.path,
            source_recipe.name,
            split=source_recipe.split,
            revision=source_recipe.revision,
            streaming=True,
        )
        yield from data.with_format("arrow").iter(batch_size=files.BATCH_ROWS)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: cannot be read ({files.one_line(error)})") from None


def _local_folder(source_recipe: HuggingFaceSource) -> Path | None:
    """Return the folder if the path names one, None for a data set of the hub, which needs a revision."""
    local_folder = Path(source_recipe.path)
    if local_folder.is_dir():
        return local_folder
    if source_recipe.revision is None:
        raise UserError(
            f"revision: {source_recipe.path} is no local folder, and a data set of the hub needs its commit, "
            "so that the same recipe means the same text"
        )
    return None


def _document(
    fields: dict[str, Any],
    source_recipe: FileSource | HuggingFaceSource,
    file: str,
    row_number: int,
    position: str,
) -> _Document | str:
    """Return the document of a record, or what is wrong with the record; other fields become `extra`."""
    for field_name in filter(None, (source_recipe.text_field, source_recipe.id_field)):
        if _field(fields, field_name) is _MISSING:
            return f"no field {field_name!r}; {_choose(field_name, fields)}"
    identifier = position if source_recipe.id_field is None else _field(fields, source_recipe.id_field)
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        return f"{source_recipe.id_field!r} is {type(identifier).__name__}, not a string or integer"
    text = "" if source_recipe.text_field is None else _field(fields, source_recipe.text_field)
    if not isinstance(text, str):
        return f"{source_recipe.text_field!r} is {type(text).__name__}, not a string; remove the row"
    extra = {
        field_name: value
        for field_name, value in fields.items()
        if field_name not in (source_recipe.text_field, source_recipe.id_field)
    }
    return _Document(file, row_number, str(identifier), text, extra)


def _field(fields: files.Fields, field_name: str) -> Any:  # Any: a value of whatever JSON
    """Return a field by its name or by a path of names joined by dots; `_MISSING` if it is not there."""
    if field_name in fields:
        return fields[field_name]
    value: object = fields
    for name in field_name.split("."):
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _choose(wrong: str, allowed: Iterable[str]) -> str:
    """Return a suggestion for a name that does not exist."""
    names = sorted(map(str, allowed))
    close = difflib.get_close_matches(wrong, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
