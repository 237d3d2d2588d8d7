"""The mixture: exact shares, parts that share no document, the same bytes whatever the files are called."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openba.artifacts import Build
from openba.data import mixture
from openba.data.mixture import PARTS, TokenStream
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.recipes.data import MixtureRecipe

BUDGETS = {"stage1": 60_000, "stage2": 20_000, "heldout": 6_000}


def build(out: Path, corpus: Path, tokenizer_folder: Path, **fields: Any) -> dict[str, Any]:
    out.mkdir()
    recipe = MixtureRecipe(**{**BUDGETS, **fields})
    return mixture.build(Build(out, recipe, {"corpus": corpus, "tokenizer": tokenizer_folder}))


def documents(folder: Path, part: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{part}_documents.parquet").to_pylist()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def texts(corpus: Path) -> dict[tuple[str, str], str]:
    rows = (row for path in corpus.glob("*.parquet") for row in pq.read_table(path).to_pylist())
    return {(row["source"], row["id"]): row["text"] for row in rows}


@pytest.mark.parametrize("part", PARTS)
def test_shares_are_exact_to_a_token(mixture_folder: Path, part: str) -> None:
    tokens: Counter[str] = Counter()
    for row in documents(mixture_folder, part):
        tokens[row["language"]] += row["tokens"]
    total = BUDGETS[part]
    assert tokens == {"en": 0.475 * total, "zh": 0.475 * total, "code": 0.05 * total}
    assert len(TokenStream(mixture_folder, part).tokens) == total


def test_no_document_is_in_two_parts_or_twice(mixture_folder: Path) -> None:
    keys = [(row["source"], row["id"]) for part in PARTS for row in documents(mixture_folder, part)]
    assert len(keys) == len(set(keys)) > 100


@pytest.mark.parametrize("part", PARTS)
def test_the_stream_is_its_documents_each_closed(
    mixture_folder: Path, corpus: Path, tokenizer: Tokenizer, part: str
) -> None:
    stream, known = TokenStream(mixture_folder, part), texts(corpus)
    assert stream.tokens.dtype == np.int32
    cut: Counter[str] = Counter()
    for row, begin, end in zip(
        documents(mixture_folder, part), stream.offsets[:-1], stream.offsets[1:], strict=True
    ):
        ids = stream.tokens[begin:end].tolist()
        whole = [*tokenizer.encode(known[row["source"], row["id"]]), tokenizer.eos]
        assert ids == whole[: len(ids)]
        assert row["tokens"] == len(ids)
        cut[row["language"]] += ids != whole
    # Only the document that meets the budget's end is cut, one a language.
    assert max(cut.values()) <= 1


def test_samples_tile_the_stream(mixture_folder: Path) -> None:
    stream = TokenStream(mixture_folder, "stage2")
    assert stream.count(568) == 20_000 // 568
    windows = [stream.sample(index, 568) for index in range(stream.count(568))]
    np.testing.assert_array_equal(np.concatenate(windows), stream.tokens[: len(windows) * 568])


def test_the_languages_are_shuffled_together(mixture_folder: Path) -> None:
    languages = [row["language"] for row in documents(mixture_folder, "stage1")]
    changes = sum(a != b for a, b in pairwise(languages))
    assert changes > 20


def test_the_same_bytes_twice_and_whatever_the_order_of_files_and_rows(
    mixture_folder: Path, corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    shuffled = tmp_path / "corpus"
    shuffled.mkdir()
    for position, path in enumerate(sorted(corpus.glob("*.parquet"), reverse=True)):
        table = pq.read_table(path)
        backwards = pa.array(range(len(table) - 1, -1, -1))
        pq.write_table(table.take(backwards), shuffled / f"{position}.parquet")
    # What the cleaning step writes beside the sources is no source.
    pq.write_table(pa.table({"source": ["reviews"], "id": ["0"]}), shuffled / "removed.parquet")
    build(tmp_path / "again", corpus, tokenizer_folder)
    build(tmp_path / "shuffled", shuffled, tokenizer_folder)
    assert contents(tmp_path / "again") == contents(mixture_folder)
    assert contents(tmp_path / "shuffled") == contents(mixture_folder)


def test_another_seed_is_another_choice(
    mixture_folder: Path, corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    build(tmp_path / "other", corpus, tokenizer_folder, seed=5)
    first, other = (
        {(r["source"], r["id"]) for r in documents(f, "heldout")}
        for f in (mixture_folder, tmp_path / "other")
    )
    assert first != other


def test_facts_count_what_was_written(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    facts = build(tmp_path / "out", corpus, tokenizer_folder)
    assert facts["tokens"]["stage2"] == {"en": 9500, "zh": 9500, "code": 1000}
    assert facts["documents"] == {part: len(documents(tmp_path / "out", part)) for part in PARTS}
    assert facts["shares_wanted"] == {"en": 0.475, "zh": 0.475, "code": 0.05}


def test_a_short_corpus_says_which_part_and_how_many_tokens(
    corpus: Path, tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    code = pq.read_table(corpus / "code.parquet")["text"].to_pylist()
    available = sum(len(tokenizer.encode(text)) + 1 for text in code)
    fields = {"shares": {"code": 1.0}, "heldout": 0, "stage2": 0}
    build(tmp_path / "whole", corpus, tokenizer_folder, **fields, stage1=available)
    assert TokenStream(tmp_path / "whole", "stage1").count(available) == 1
    assert TokenStream(tmp_path / "whole", "stage2").count(1) == 0
    with pytest.raises(UserError) as error:
        build(tmp_path / "short", corpus, tokenizer_folder, **fields, stage1=available + 5)
    assert f"mixture.stage1: code is 5 tokens short of its {available + 5:,}" in str(error.value)
    assert "\n" not in str(error.value)
