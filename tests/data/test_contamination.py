"""Contamination: n-grams as in plain Python, planted records found in both languages, nothing else goes."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import opencc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import contamination, labelled, mixture
from openba.data.contamination import Holder, Items
from openba.data.matching import Units
from openba.data.pairs import ASKED, ASKED_FILE
from openba.data.store import TokenStore
from openba.recipes.data import ContaminationRecipe, MixtureRecipe, TaskStep
from openba.recipes.evaluate import BenchmarkRecipe

ENGLISH = (
    "The old lighthouse keeper counted forty ships before breakfast and wrote every name into his grey "
    "notebook with a pencil he had sharpened on the stones of the harbour wall"
)
CHINESE = "昨天下午三点钟左右有一位年轻的图书管理员在旧书架后面发现了一封写于六十年前却从未寄出的长信"


SYMBOLS = "[]{}<>+*=^%|&\\/$#~√∑∫≤≥≠±×÷°"
HAN = r"\u3040-\u30ff\u3400-\u9fff\U00020000-\U0002ffff①-⓿"
WORD = re.compile(rf"[{HAN}]|(?:(?![{HAN}])[^\W_])+")
CONVERTER = opencc.OpenCC("t2s")


def units(text: str) -> list[str]:
    """The definition in plain Python: fold, split, leave out the marker of an option."""
    folded = "".join(unicodedata.normalize("NFKC", c) if not "①" <= c <= "⓿" else c for c in text)
    plain = "".join(CONVERTER.convert(c) for c in folded.lower())
    found = []
    for match in WORD.finditer(_without_symbols(plain)):
        word, rest = match[0], plain[match.end() :]
        marker = len(word) == 1 and word.isascii() and re.match(r"[)、]|[.:](?![0-9a-z])", rest)
        if not marker:
            found.append((match.start(), word))
    found += [(place, c) for place, c in enumerate(plain) if c in SYMBOLS]
    return [word for _, word in sorted(found)]


def _without_symbols(text: str) -> str:
    return "".join(" " if c in SYMBOLS else c for c in text)


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    found = units(text)
    return [tuple(found[i : i + size]) for i in range(len(found) - size + 1)]


PLAIN = (
    "a",
    "B",
    "ab",
    "Ab",
    "9",
    "é",
    "한국",
    "中",
    "國",
    "国",
    "かな",
    "Ａ",
    "ｂ９",
    " ",
    ", ",
    "。",
    "\n",
    "😀",
)
MARKERS = ("A. ", "(b) ", "3、", "x.y", "2:5", "①", "+", "[", "１．", "：", "．ｃ")
words = st.sampled_from((*PLAIN, *MARKERS))
texts = st.lists(st.lists(words, max_size=30).map("".join), max_size=8)


@settings(max_examples=200, deadline=None)
@given(column=texts, size=st.integers(1, 5), start=st.integers(0, 3))
def test_ngrams_are_those_of_plain_python(column: list[str], size: int, start: int) -> None:
    array = pa.array(column, pa.large_string())[start:]
    hashes, begins = Units.of(array).ngrams(size)
    plain = [grams(text, size) for text in column[start:]]
    assert np.diff(begins).tolist() == [len(row) for row in plain]
    names = dict(zip((g for row in plain for g in row), hashes.tolist(), strict=False))
    # The same n-gram, the same hash; another, another.
    assert [names[g] for row in plain for g in row] == hashes.tolist()
    assert len(set(names.values())) == len(names)


Record = tuple[list[str], list[str]]
"""What a record asks, in parts; its answer and all options."""


def write_task(folder: Path, asked: list[Record], train: list[tuple[str, str]] = []) -> Path:  # noqa: B006
    folder.mkdir(parents=True)
    columns = {"question": [question for question, _ in asked], "answers": [answers for _, answers in asked]}
    pq.write_table(pa.Table.from_pydict(columns, ASKED), folder / ASKED_FILE)
    table = pa.table({"input": [r[0] for r in train], "target": [r[1] for r in train]})
    pq.write_table(
        table.cast(pa.schema({"input": pa.string(), "target": pa.string()})), folder / "train.parquet"
    )
    return folder


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Path]:
    return {
        "english": write_task(tmp_path / "task-english", [([ENGLISH], ["grey"]), (["too short"], ["yes"])]),
        "chinese": write_task(tmp_path / "task-chinese", [([CHINESE], ["是"])]),
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


def test_phrases_that_many_records_share_are_no_overlap(tmp_path: Path) -> None:
    phrase = "Read the following long text with care and then say in one word what its writer thinks of it: "
    rows: list[Record] = [([phrase + f"item {k} alone"], ["good"]) for k in range(300)]
    items = Items.read({"templated": write_task(tmp_path / "t", rows)}, 13)
    batch = pa.RecordBatch.from_pydict({"text": pa.array([phrase + "and more words of its own"])})
    assert not Holder(items)(batch).any()


SHORT: Record = (["《红楼梦》的作者是谁？"], ["曹雪芹", "吴承恩", "曹雪芹", "施耐庵"])


@pytest.mark.parametrize(
    ("text", "is_held"),
    [
        ("《红楼梦》的作者是谁？\nA. 吴承恩\nB. 曹雪芹\nC. 施耐庵", True),
        ("《紅樓夢》的作者\n是誰（　）１、吳承恩 ２、曹雪芹", True),
        ("红楼梦的作者是谁：曹雪芹。", True),
        ("《红楼梦》的作者是谁？这里没有人知道。", False),
        ("曹雪芹写了一本书。《红楼梦》的作者是谁？", False),
        ("《红楼梦》的作者是谁？" + "许多年来人们都在讨论这个问题，" * 20 + "曹雪芹", False),
    ],
)
def test_a_short_question_needs_its_answer_close_behind(text: str, is_held: bool, tmp_path: Path) -> None:
    assert held({"set": write_task(tmp_path / "t", [SHORT])}, text) == [is_held]


def test_a_question_counts_without_its_passage(tmp_path: Path) -> None:
    question = "Which of the stones of the harbour wall did the old keeper sharpen his pencil on at night?"
    folder = write_task(tmp_path / "t", [([ENGLISH, question], ["the third"])])
    assert held({"set": folder}, f"Q: {question}", ENGLISH, "neither") == [True, False, False]


def test_prompt_words_letters_and_examples_are_no_part_of_a_question(shared: Path, tmp_path: Path) -> None:
    """Prompt and examples alone hold a record only if an example asks the same; CMMLU has some."""
    recipe = load(
        CONFIGS / "benchmark/paper/cmmlu-5shot.yaml",
        BenchmarkRecipe,
        [f"task.source.path={shared / 'data' / 'eval_cmmlu' / '*.jsonl'}"],
    )
    (tmp_path / "cmmlu").mkdir()
    labelled.build(Build(tmp_path / "cmmlu", TaskStep(name="cmmlu", task=recipe.task), {}))
    prompts = pq.read_table(tmp_path / "cmmlu" / "heldout.parquet").slice(0, 300).to_pylist()
    examples = [row["input"][: row["turns"][-1]] for row in prompts]
    asked = [row["input"][row["turns"][-1] :] for row in prompts]
    holder = Holder(Items.read({"cmmlu": tmp_path / "cmmlu"}, 13))
    questions = pq.read_table(tmp_path / "cmmlu" / ASKED_FILE)["question"].to_pylist()
    rows, records = holder.found(pa.array(examples, pa.large_string()))
    assert len(set(rows.tolist())) <= 0.1 * len(examples)
    for row, record in zip(rows, records, strict=True):
        letters = [re.sub(r"[\W_]", "", text) for text in (questions[record][0], examples[row])]
        assert letters[0][:13] in letters[1]
    rows, records = holder.found(pa.array(asked, pa.large_string()))
    assert np.isin(np.arange(len(asked)), rows[rows == records]).mean() >= 0.95


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
            tmp_path / "bench",
            [([" ".join(words[:60])], []), ([unseen], []), ([half], []), (["short"], [])],
        ),
        "other": write_task(tmp_path / "other", [([unseen], [])], [(f"Say: {unseen}", "yes")]),
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
    assert shares["in news"][0] == 1.0
    assert shares["in news"][1] == 0.0
    assert 0.2 < shares["in news"][2] < 0.8


def test_the_mixture_leaves_out_what_holds_a_record(
    corpus: Path, tokenizer_folder: Path, mixture_folder: Path, tmp_path: Path
) -> None:
    used = TokenStore(mixture_folder / "stage1").documents.to_pylist()
    news = [row["id"] for row in used if row["source"] == "news"][:5]
    table = pq.read_table(corpus / "news.parquet").to_pylist()
    rows: list[Record] = [([row["text"][:600]], []) for row in table if row["id"] in news]
    task = write_task(tmp_path / "task", rows)
    (tmp_path / "out").mkdir()
    recipe = MixtureRecipe(parts={"stage1": 60_000, "stage2": 20_000}, heldout=6_000)
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
