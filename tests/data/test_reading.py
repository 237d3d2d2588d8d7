"""Files as people have them: compressed, in older encodings, CSV, WARC, HTML, with nested fields."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openba.artifacts import Build
from openba.data import opening, sources
from openba.data.quarantine import Unreadable
from openba.recipes.data import FileSource, SourceRecipe, SourceStep

SIMPLIFIED = "房间很干净，服务也不错，下次还会再来。\n价格便宜，早餐丰富，离地铁站很近。\n"
TRADITIONAL = "房間很乾淨，服務也不錯，下次還會再來。\n價格便宜，早餐豐富，離地鐵站很近。\n"
ARTICLE = "The council met on Monday and agreed to rebuild the bridge across the river by next spring. " * 6
PAGE = (
    "<html><head><title>Bridge</title></head><body><nav><a href='/'>Home</a> <a href='/shop'>Shop</a></nav>"
    f"<article><h1>Bridge to be rebuilt</h1><p>{ARTICLE}</p><p>{ARTICLE}</p></article>"
    "<footer>Copyright. All rights reserved. Subscribe to our newsletter.</footer></body></html>"
)


def read(**fields: Any) -> tuple[list[dict[str, Any]], list[Unreadable]]:
    recipe: Any = TypeAdapter(SourceRecipe).validate_python({"language": "zh", "licence": "test", **fields})
    told: list[Unreadable] = []
    batches = list(sources.read("s", recipe, told.append))
    rows = pa.Table.from_batches(batches).to_pylist() if batches else []
    return [{**row, "extra": json.loads(row["extra"])} for row in rows], told


def _by_arrow(kind: str) -> Callable[[bytes], bytes]:
    return lambda content: pa.Codec(kind).compress(content, asbytes=True)


def _lz4(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "lz4") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": _by_arrow("zstd"),
    "lz4": _lz4,
}


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("is_named", [True, False])
def test_compression_is_seen_by_name_or_by_the_first_bytes(kind: str, is_named: bool, tmp_path: Path) -> None:
    records = [{"text": f"{SIMPLIFIED}{number}"} for number in range(2000)]
    content = "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()
    name = f"a.jsonl.{kind}" if is_named else "a.jsonl"
    (tmp_path / name).write_bytes(COMPRESS[kind](content))
    rows, told = read(adapter="jsonl", path=str(tmp_path))
    assert [row["text"] for row in rows] == [record["text"] for record in records]
    assert told == []
    compressed = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(compressed[: len(compressed) * 2 // 3])
    rows, told = read(adapter="jsonl", path=str(tmp_path))
    assert len(rows) < len(records)
    if kind in ("gz", "xz"):  # lines before the end of a file that is cut off are read
        assert len(rows) > 100
    assert told
    assert "broken" in told[-1].reason


@pytest.mark.parametrize(
    ("text", "encoding", "declared"),
    [
        (SIMPLIFIED, "gb18030", "gb18030"),
        (SIMPLIFIED, "gb18030", "auto"),
        (TRADITIONAL, "big5", "big5"),
        (TRADITIONAL, "big5", "auto"),
        (SIMPLIFIED, "utf-16", "utf-16"),
        (SIMPLIFIED, "utf-16", "auto"),
        (SIMPLIFIED, "utf-8", "auto"),
        (SIMPLIFIED, "utf-8-sig", "auto"),
    ],
)
def test_text_in_another_encoding_is_read(text: str, encoding: str, declared: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    rows, told = read(adapter="text", path=str(tmp_path), encoding=declared)
    assert [row["text"] for row in rows] == [text]
    lines = json.dumps({"text": text}, ensure_ascii=False) + "\n" + json.dumps({"text": "二"})
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(lines.encode(encoding)))
    rows, more = read(adapter="jsonl", path=str(tmp_path / "b.jsonl"), encoding=declared)
    assert [row["text"] for row in rows] == [text, "二"]
    assert told == more == []


def test_bytes_that_are_not_of_the_encoding_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(SIMPLIFIED.encode("gb18030") + b"\xff\xff" + "好".encode("gb18030"))
    rows, told = read(adapter="text", path=str(tmp_path), encoding="gb18030")
    assert rows[0]["text"].startswith(SIMPLIFIED)
    assert rows[0]["text"].endswith("好")
    assert [bad.reason for bad in told] == ["2 places are not gb18030: U+FFFD stands there"]


def test_a_file_of_no_known_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(128, 256)) * 40)
    rows, told = read(adapter="text", path=str(tmp_path), encoding="auto")
    assert rows == []
    assert "none of UTF-8, UTF-16, GB18030 and Big5" in told[0].reason


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_every_text_survives_its_encoding(
    encoding: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode(encoding))
    with opening.Utf8Stream(path, encoding) as stream:
        assert stream.readall().decode() == text


def test_csv_keeps_quoted_lines_and_names_bad_rows(tmp_path: Path) -> None:
    rows_written = [["title", "body"], ["一", 'first\nline, "quoted"'], ["二"], ["三", "x" * 200_000]]
    with (tmp_path / "a.csv").open("w", encoding="gb18030", newline="") as file:
        csv.writer(file).writerows(rows_written)
    rows, told = read(adapter="csv", path=str(tmp_path), text_field="body", encoding="gb18030")
    assert [row["text"] for row in rows] == ['first\nline, "quoted"', "x" * 200_000]
    assert [row["extra"] for row in rows] == [{"title": "一"}, {"title": "三"}]
    assert [(bad.row, bad.reason) for bad in told] == [(3, "1 fields, the header has 2")]
    (tmp_path / "b.tsv").write_text("body\tn\n文\t1\n", encoding="utf-8-sig")
    assert read(adapter="csv", path=str(tmp_path / "b.tsv"), text_field="body")[0][0]["text"] == "文"


def test_a_nested_field_is_the_text(tmp_path: Path) -> None:
    records = [{"meta": {"body": "文", "id": 7}, "n": 1}, {"meta": "none"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    rows, told = read(adapter="jsonl", path=str(tmp_path), text_field="meta.body", id_field="meta.id")
    assert [(row["id"], row["text"]) for row in rows] == [("7", "文")]
    assert [(bad.row, bad.reason) for bad in told] == [(2, "no field 'meta.body'; did you mean 'meta'?")]


def archive(path: Path, pages: list[tuple[str, bytes]]) -> None:
    """Write a WARC archive: a request and a response for each page, given as content type and bytes."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for number, (content_type, payload) in enumerate(pages):
            url = f"http://example.org/{number}"
            request = StatusAndHeaders("GET / HTTP/1.0", [("Host", "example.org")], is_http_request=True)
            writer.write_record(writer.create_warc_record(url, "request", http_headers=request))
            response = StatusAndHeaders("200 OK", [("Content-Type", content_type)], protocol="HTTP/1.0")
            record = writer.create_warc_record(
                url, "response", payload=io.BytesIO(payload), http_headers=response
            )
            writer.write_record(record)


@pytest.mark.parametrize("name", ["pages.warc.gz", "pages.warc"])
def test_pages_of_an_archive_are_documents(name: str, tmp_path: Path) -> None:
    chinese = f"<html><head><meta charset='gb2312'></head><body><p>{SIMPLIFIED}</p></body></html>"
    pages = [
        ("text/html; charset=utf-8", PAGE.encode()),
        ("text/html", chinese.encode("gb2312")),
        ("image/png", b"\x89PNG"),
        ("text/plain", "纯文本".encode()),
    ]
    archive(tmp_path / name, pages)
    rows, told = read(adapter="warc", path=str(tmp_path), id_field="url")
    assert [row["text"] for row in rows] == [PAGE, chinese, "纯文本"]
    assert [row["id"] for row in rows] == [f"http://example.org/{number}" for number in (0, 1, 3)]
    assert rows[0]["extra"]["content_type"] == "text/html"
    assert told == []
    extracted, told = read(adapter="warc", path=str(tmp_path), id_field="url", extract="article")
    assert ARTICLE.strip() in extracted[0]["text"]
    assert "Shop" not in extracted[0]["text"]
    assert "newsletter" not in extracted[0]["text"]
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    rows, told = read(adapter="warc", path=str(tmp_path), id_field="url")
    assert len(rows) < 3
    assert "the archive is damaged from here on (cut off)" in told[-1].reason


def test_html_files_become_articles(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.html").write_text("<html><body></body></html>")
    rows, told = read(adapter="text", path=str(tmp_path / "*.html"), extract="article")
    assert [row["id"] for row in rows] == ["a.html"]
    assert rows[0]["text"].startswith("Bridge to be rebuilt")
    assert [bad.reason for bad in told] == ["no article is found in its HTML; remove the row"]


def test_a_score_range_leaves_out_the_rest_and_counts_it(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"text {number}", "meta": {"score": score}}
        for number, score in enumerate([1, 2.5, 3, "3.5", 4, "nan", None, "good"])
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))

    def texts(**score: object) -> tuple[list[str], sources.Facts]:
        fields = {"adapter": "jsonl", "path": str(path), "language": "en", "licence": "test"}
        source = FileSource.model_validate({**fields, "score": {"field": "meta.score", **score}})
        out = tmp_path / "-".join(map(str, score.values()))
        out.mkdir()
        facts = sources.build(Build(out, SourceStep(name="rows", source=source), {}))
        return pq.read_table(out / "documents.parquet")["text"].to_pylist(), facts

    high, facts = texts(min=3)
    assert high == ["text 2", "text 3", "text 4"]
    assert facts["outside_score"] == 3
    assert facts["quarantined"]["rows"] == 2
    low, _ = texts(min=2.5, below=3)
    assert low == ["text 1"]


def test_a_source_without_a_score_has_the_recipe_that_it_had() -> None:
    fields = {"adapter": "jsonl", "path": "x", "language": "en", "licence": "test"}
    assert "score" not in FileSource.model_validate(fields).model_dump()
    scored = FileSource.model_validate(fields | {"score": {"field": "s", "min": 1}})
    assert scored.model_dump()["score"] == {"field": "s", "min": 1.0, "below": None}
