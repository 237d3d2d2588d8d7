"""Contamination: n-grams as in plain Python, planted records found in both languages, nothing else goes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.artifacts import Build
from openba.data import contamination, mixture
from openba.data.contamination import Holder, Items, ngrams
from openba.data.store import TokenStore
from openba.recipes.data import ContaminationRecipe, MixtureRecipe

UNIT = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[a-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u1fff\uac00-\ud7a3]+"
)
ENGLISH = (
    "The old lighthouse keeper counted forty ships before breakfast and wrote every name into his grey "
    "notebook with a pencil he had sharpened on the stones of the harbour wall"
)
CHINESE = "昨天下午三点钟左右有一位年轻的图书管理员在旧书架后面发现了一封写于六十年前却从未寄出的长信"


def units(text: str) -> list[str]:
    return UNIT.findall(re.sub("[A-Z]", lambda match: match[0].lower(), text))


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    found = units(text)
    return [tuple(found[i : i + size]) for i in range(len(found) - size + 1)]


words = st.sampled_from(
    ["a", "B", "ab", "Ab", "9", "é", "한국", "中", "文", "かな", " ", ", ", "。", "\n", "😀", "ab"]
)
texts = st.lists(st.lists(words, max_size=30).map("".join), max_size=8)


@settings(max_examples=200, deadline=None)
@given(column=texts, size=st.integers(1, 5), start=st.integers(0, 3))
def test_ngrams_are_those_of_plain_python(column: list[str], size: int, start: int) -> None:
    array = pa.array(column, pa.large_string())[start:]
    hashes, begins = ngrams(array, size)
    plain = [grams(text, size) for text in column[start:]]
    assert np.diff(begins).tolist() == [len(row) for row in plain]
    names = dict(zip((g for row in plain for g in row), hashes.tolist(), strict=False))
    # The same n-gram, the same hash; another, another.
    assert [names[g] for row in plain for g in row] == hashes.tolist()
    assert len(set(names.values())) == len(names)


def write_task(folder: Path, heldout: list[tuple[str, str]], train: list[tuple[str, str]] = []) -> Path:  # noqa: B006
    folder.mkdir(parents=True)
    for name, rows in (("heldout", heldout), ("train", train)):
        table = pa.table({"input": [r[0] for r in rows], "target": [r[1] for r in rows]})
        pq.write_table(
            table.cast(pa.schema({"input": pa.string(), "target": pa.string()})), folder / f"{name}.parquet"
        )
    return folder


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Path]:
    return {
        "english": write_task(tmp_path / "task-english", [(ENGLISH, "grey"), ("too short", "yes")]),
        "chinese": write_task(tmp_path / "task-chinese", [(CHINESE, "是")]),
    }


def held(records: dict[str, Path], *column: str) -> list[bool]:
    batch = pa.RecordBatch.from_pydict({"text": pa.array(column, pa.large_string())})
    return Holder(Items.read(records, 13))(batch).tolist()


def test_a_planted_record_is_found_in_both_languages(records: dict[str, Path]) -> None:
    other = "他们在这里讨论了完全不同的事情并且没有提到任何信件或者图书馆里的旧书架以及管理员"
    assert held(records, f"前文。{CHINESE}后文", other, f"Intro. {ENGLISH}! Outro", "nothing") == [
        True,
        False,
        True,
        False,
    ]


def test_case_punctuation_and_line_breaks_hide_nothing(records: dict[str, Path]) -> None:
    disguised = [ENGLISH.upper().replace(" ", ",\n"), "，".join(CHINESE)]
    assert held(records, *disguised) == [True, True]


def test_a_quotation_of_part_of_a_record_stays(records: dict[str, Path]) -> None:
    assert held(records, " ".join(ENGLISH.split()[:18]), CHINESE[:20]) == [False, False]


def test_words_of_a_template_are_no_overlap(tmp_path: Path) -> None:
    template = (
        "Read the following long text with care and then say in one word what its writer thinks of it: "
    )
    rows = [(template + f"item {k} alone", "good") for k in range(300)]
    items = Items.read({"templated": write_task(tmp_path / "t", rows)}, 13)
    holder = Holder(items)
    batch = pa.RecordBatch.from_pydict({"text": pa.array([template + "and more words of its own"])})
    assert not holder(batch).any()


def test_the_report_counts_records_by_overlap_and_names_where(
    corpus: Path, mixture_folder: Path, tmp_path: Path
) -> None:
    used = TokenStore(mixture_folder / "stage1").documents
    news = next(row for row in used.to_pylist() if row["source"] == "news")
    table = pq.read_table(corpus / "news.parquet")
    text = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))[news["id"]]
    words = text.split()
    unseen = " ".join(f"unseen{k}" for k in range(60))
    half = " ".join([*words[:40], *(f"fresh{k}" for k in range(40))])
    tasks = {
        "bench": write_task(
            tmp_path / "bench", [(" ".join(words[:60]), ""), (unseen, ""), (half, ""), ("short", "")]
        ),
        "other": write_task(tmp_path / "other", [(unseen, "")], [(f"Say: {unseen}", "yes")]),
    }
    recipe = ContaminationRecipe(sets=("bench", "other"), tasks=("other",))
    (tmp_path / "out").mkdir()
    inputs = {"corpus": corpus, "mixture": mixture_folder} | {f"task-{k}": v for k, v in tasks.items()}
    facts = contamination.build(Build(tmp_path / "out", recipe, inputs))
    first, second = facts["sets"]
    assert first == {
        "set": "bench",
        "records": 4,
        "too_short": 1,
        "clean": 0,
        "partly": 1,
        "dirty": 2,
        "overlaps": {"news": 2, "task other": 1},
    }
    assert second["overlaps"] == {"task other": 1}
    shares = pq.read_table(tmp_path / "out" / "records.parquet").to_pydict()
    assert shares["news"][0] == 1.0
    assert shares["news"][1] == 0.0
    assert 0.2 < shares["news"][2] < 0.8


def test_the_mixture_leaves_out_what_holds_a_record(
    corpus: Path, tokenizer_folder: Path, mixture_folder: Path, tmp_path: Path
) -> None:
    used = TokenStore(mixture_folder / "stage1").documents.to_pylist()
    news = [row["id"] for row in used if row["source"] == "news"][:5]
    table = pq.read_table(corpus / "news.parquet").to_pylist()
    rows = [(row["text"][:600], "") for row in table if row["id"] in news]
    task = write_task(tmp_path / "task", rows)
    (tmp_path / "out").mkdir()
    recipe = MixtureRecipe(stage1=60_000, stage2=20_000, heldout=6_000)
    inputs = {"corpus": corpus, "tokenizer": tokenizer_folder, "task-bench": task}
    facts = mixture.build(Build(tmp_path / "out", recipe, inputs))
    left = [
        row["id"]
        for part in ("stage1", "stage2", "heldout")
        for row in TokenStore(tmp_path / "out" / part).documents.to_pylist()
        if row["source"] == "news"
    ]
    assert not set(left) & set(news)
    assert facts["groups"]["en"]["documents_contaminated"] == 5
    assert facts["groups"]["zh"]["documents_contaminated"] == 0
    assert facts["tokens"]["stage1"]["en"] == 28_500
