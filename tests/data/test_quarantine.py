"""Broken files and rows of a source: named, counted and set aside; the rest is read, and a corpus cleaned."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from openba.artifacts import Build
from openba.data import sources
from openba.data.quarantine import QUARANTINE
from openba.data.schema import DOCUMENTS
from openba.errors import UserError
from openba.recipes.data import SourceRecipe, SourceStep

LINES = [json.dumps({"text": f"第{i}行的文字。{os.urandom(20).hex()}"}).encode() + b"\n" for i in range(400)]
SUFFIX = {"jsonl": ".jsonl", "parquet": ".parquet", "text": ".txt"}


def read(folder: Path, adapter: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Run the step: documents, what is set aside, facts."""
    fields = {"adapter": adapter, "path": str(folder), "language": "zh", "licence": "test"}
    source = TypeAdapter(SourceRecipe).validate_python(fields)
    out = folder.parent / "out"
    out.mkdir()
    facts = sources.build(Build(out, SourceStep(name="mine", source=source), {}))
    aside = pq.read_table(out / QUARANTINE).to_pylist() if (out / QUARANTINE).exists() else []
    return pq.read_table(out / DOCUMENTS).to_pylist(), aside, facts


def parquet(path: Path, texts: list[Any], group: int = 100, name: str = "text") -> None:
    pq.write_table(pa.table({name: texts}), path, row_group_size=group, compression="none",
                   use_dictionary=False, write_page_checksum=True)  # fmt: skip


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x5A
    path.write_bytes(content)


def flipped_group(path: Path) -> None:
    parquet(path, [f"文字{i}" for i in range(300)])
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    flip(path, column.data_page_offset + column.total_compressed_size // 2)


def cut_parquet(path: Path) -> None:
    parquet(path, ["a" * 1000] * 50)
    path.write_bytes(path.read_bytes()[:-200])


def cut_gzip(path: Path) -> None:
    whole = gzip.compress(b"".join(LINES))
    path.write_bytes(whole[: len(whole) // 2])


def flipped_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"".join(LINES)))
    flip(path, path.stat().st_size // 2)


def lines(*broken: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(b"\n".join([b'{"text":"one"}', *broken, b'{"text":"two"}', b""]))


CASES: dict[str, tuple[str, str, Callable[[Path], Any], list[tuple[int | None, str]], int | None]] = {
    # suffix of the broken file, how it is written, (row, reason) told, documents that it still gives
    "no JSON": ("jsonl", ".jsonl", lines(b"{bad}", b"[1]"), [(2, "no valid JSON"), (3, "a list")], 2),
    "bytes": ("jsonl", ".jsonl", lines(b'{"text":"\xff"}'), [(2, "byte 24 is not UTF-8")], 2),
    "surrogate": ("jsonl", ".jsonl", lines(b'{"text":"\\ud800"}'), [(2, "surrogate")], 2),
    "field": ("jsonl", ".jsonl", lines(b'{"txt":"a"}', b'{"text":5}'), [(2, "'txt'"), (3, "int")], 2),
    "cut line": ("jsonl", ".jsonl", lambda p: p.write_bytes(LINES[0] + LINES[1][:30]), [(2, "JSON")], 1),
    "cut gzip": ("jsonl", ".jsonl.gz", cut_gzip, [(None, "cut off after row")], None),
    "flipped gzip": ("jsonl", ".jsonl.gz", flipped_gzip, [(None, "broken gzip")], 0),
    "no gzip": ("jsonl", ".jsonl.gz", lambda p: p.write_bytes(b"text"), [(None, "broken gzip")], 0),
    "empty": ("jsonl", ".jsonl", Path.touch, [(None, "empty")], 0),
    "empty Parquet": ("parquet", ".parquet", Path.touch, [(None, "empty")], 0),
    "cut Parquet": ("parquet", ".parquet", cut_parquet, [(None, "no readable Parquet")], 0),
    "group": ("parquet", ".parquet", flipped_group, [(101, "row group 1 cannot be read")], 200),
    "schema": ("parquet", ".parquet", lambda p: parquet(p, ["a"], name="body"), [(None, "no field")], 0),
    "type": ("parquet", ".parquet", lambda p: parquet(p, [1, 2]), [(None, "int64, not a string")], 0),
    "text": ("text", ".txt", lambda p: p.write_bytes(b"ab\xff"), [(None, "byte 2 is not UTF-8")], 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_broken_is_named_and_the_rest_is_read(tmp_path: Path, case: str) -> None:
    adapter, suffix, write, told, left = CASES[case]
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / f"broken{suffix}")
    for name in ("a", "z"):  # before and after it
        path = folder / f"{name}{SUFFIX[adapter]}"
        parquet(path, ["好"]) if adapter == "parquet" else path.write_text('{"text": "好"}\n')
    documents, aside, facts = read(folder, adapter)
    assert [(row["row"], row["file"]) for row in aside] == [
        (row, str(folder / f"broken{suffix}")) for row, _ in told
    ]
    assert all(reason in row["reason"] for row, (_, reason) in zip(aside, told, strict=True)), aside
    assert {documents[0]["id"][0], documents[-1]["id"][0]} == {"a", "z"}
    found = [row["text"] for row in documents if row["id"].startswith("broken")]
    if left is None:  # a cut gzip: what comes before the cut is whole
        assert 50 < len(found) < len(LINES)
        assert found == [json.loads(line)["text"] for line in LINES[: len(found)]]
        assert aside[0]["reason"].startswith(f"broken gzip, cut off after row {len(found)};")
    else:
        assert len(found) == left
    counted = {"files": sum(row is None for row, _ in told), "rows": sum(row is not None for row, _ in told)}
    assert {key: facts["quarantined"][key] for key in counted} == counted
    assert facts["quarantined"]["first"][0].startswith(str(folder / f"broken{suffix}"))


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][4] == 0])
def test_a_source_of_which_nothing_is_left_is_one_line(tmp_path: Path, case: str) -> None:
    adapter, suffix, write, told, _ = CASES[case]
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / f"broken{suffix}")
    with pytest.raises(UserError, match="source mine: nothing in it can be read") as error:
        read(folder, adapter)
    assert "\n" not in str(error.value)
    assert f"broken{suffix}" in str(error.value)
    assert told[0][1] in str(error.value)


def test_many_broken_rows_are_all_written_down(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jsonl").write_bytes(b"{bad}\n" * 25_000 + b'{"text":"good"}\n')
    documents, aside, facts = read(tmp_path / "in", "jsonl")
    assert [row["id"] for row in documents] == ["x.jsonl:25001"]
    assert [row["row"] for row in aside] == list(range(1, 25_001))
    assert (facts["quarantined"]["rows"], len(facts["quarantined"]["first"])) == (25_000, 5)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda content: content,
    ".JSONL": lambda content: content,
    ".json": lambda content: content,
    ".ndjson": lambda content: content,
    ".jsonl.gz": gzip.compress,
    ".Jsonl.GZ": gzip.compress,
    ".jsonl.bz2": bz2.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path) -> None:
    folder, linked = tmp_path / "texts", tmp_path / "elsewhere"
    folder.mkdir()
    linked.mkdir()
    for number, (suffix, pack) in enumerate(PACKED.items()):
        (folder / f"{number}{suffix}").write_bytes(pack(f'{{"text": "text {number}"}}\n'.encode()))
    (linked / "far.jsonl").write_text('{"text": "behind a link"}\n')
    (folder / "link").symlink_to(linked)
    (linked / "up").symlink_to(folder)
    (folder / "README.md").write_text("about")
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    rows, aside, facts = read(folder, "jsonl")
    assert {row["text"] for row in rows} == {f"text {n}" for n in range(len(PACKED))} | {"behind a link"}
    assert [(Path(row["file"]).name, row["reason"][:20]) for row in aside] == [
        ("README.md", "not read, since its "),
        ("gone.jsonl", "a link that leads no"),
    ]
    assert facts["quarantined"]["files"] == 2


@pytest.mark.parametrize("suffix", [".txt.gz", ".TXT", ".txt.zst", ".txt.xz", ".txt.bz2"])
def test_texts_are_read_compressed_and_in_capitals(suffix: str, tmp_path: Path) -> None:
    pack = PACKED.get(f".jsonl{suffix.removeprefix('.txt')}", lambda content: content)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / f"a{suffix}").write_bytes(pack("一段文字".encode()))
    assert [row["text"] for row in read(tmp_path / "texts", "text")[0]] == ["一段文字"]


@pytest.mark.parametrize(
    ("suffix", "fault"),
    [  # not a flipped bit of zstd: Arrow writes it without a check sum
        (".jsonl.bz2", "cut off"),
        (".jsonl.bz2", "flipped"),
        (".jsonl.xz", "cut off"),
        (".jsonl.xz", "flipped"),
        (".jsonl.zst", "cut off"),
    ],
)
def test_broken_compression_is_told(suffix: str, fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"text": "good"}\n')
    packed = bytearray(PACKED[suffix](b"".join(LINES)))
    if fault == "flipped":
        packed[len(packed) // 2] ^= 0x5A
    else:
        packed = packed[: len(packed) // 2]
    (folder / f"bad{suffix}").write_bytes(packed)
    rows, aside, _ = read(folder, "jsonl")
    assert rows[-1]["text"] == "good"
    assert [Path(row["file"]).name for row in aside if "broken" in row["reason"]] == [f"bad{suffix}"]


def test_an_archive_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"text": "good"}\n')
    (folder / "a.jsonl").write_bytes(b"PK\x03\x04 and so on")
    _, aside, _ = read(folder, "jsonl")
    assert ["a zip archive" in row["reason"] for row in aside] == [True]


def test_parquet_with_two_columns_of_one_name_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    parquet(folder / "good.parquet", ["good"])
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, folder / "twice.parquet")
    rows, aside, _ = read(folder, "parquet")
    assert [row["text"] for row in rows] == ["good"]
    assert [(row["row"], row["reason"]) for row in aside] == [
        (None, "column 'text' occurs twice; rename or remove one")
    ]


def test_rows_without_text_are_set_aside_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": ""}\n{"text": "one"}\n{"text": " \\n"}\n')
    rows, aside, facts = read(folder, "jsonl")
    assert [row["text"] for row in rows] == ["one"]
    assert [(row["row"], row["reason"]) for row in aside] == [
        (1, "the text is empty; remove the row"),
        (3, "the text is empty; remove the row"),
    ]
    assert facts["quarantined"]["rows"] == 2
