"""The mixture: exact shares, parts that share no document, the same bytes whatever the files are called."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openba.artifacts import Build
from openba.data import mixture
from openba.data.schema import SCHEMA
from openba.data.store import TokenStore
from openba.errors import UserError
from openba.recipes.data import HELDOUT, MixtureRecipe
from openba.tokenizer.tokenizer import Tokenizer

BUDGETS = {"stage1": 60_000, "stage2": 20_000, "heldout": 6_000}
PARTS = tuple(BUDGETS)


def build(out: Path, corpus: Path, tokenizer_folder: Path, **fields: Any) -> dict[str, Any]:
    out.mkdir()
    budgets = {part: fields.pop(part, tokens) for part, tokens in BUDGETS.items()}
    recipe = MixtureRecipe(heldout=budgets.pop(HELDOUT), parts=budgets, **fields)
    return mixture.build(Build(out, recipe, {"corpus": corpus, "tokenizer": tokenizer_folder}))


def documents(folder: Path, part: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / part / "documents.parquet").to_pylist()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


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
    assert len(TokenStore(mixture_folder / part)) == total


def test_no_document_is_in_two_parts_or_twice(mixture_folder: Path) -> None:
    keys = [(row["source"], row["id"]) for part in PARTS for row in documents(mixture_folder, part)]
    assert len(keys) == len(set(keys)) > 100


@pytest.mark.parametrize("part", PARTS)
def test_the_stream_is_its_documents_each_closed(
    mixture_folder: Path, corpus: Path, tokenizer: Tokenizer, part: str
) -> None:
    stream, known = TokenStore(mixture_folder / part), texts(corpus)
    assert stream.tokens(0, 1).dtype == np.int32
    cut: Counter[str] = Counter()
    for row, begin, end in zip(
        documents(mixture_folder, part), stream.offsets[:-1], stream.offsets[1:], strict=True
    ):
        ids = stream.tokens(begin, end).tolist()
        whole = [*tokenizer.encode(known[row["source"], row["id"]]), tokenizer.eos]
        assert ids == whole[: len(ids)]
        assert row["tokens"] == len(ids)
        cut[row["language"]] += ids != whole
    # Only the document that meets the budget's end is cut, one a language.
    assert max(cut.values()) <= 1


def test_samples_tile_the_stream(mixture_folder: Path) -> None:
    stream = TokenStore(mixture_folder / "stage2")
    assert stream.count(568) == 20_000 // 568
    windows = stream.windows(np.arange(stream.count(568)), 568)
    np.testing.assert_array_equal(windows.ravel(), stream.tokens(0, windows.size))


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
    fields = {"shares": {"code": 1.0}, "heldout": 1, "stage2": 1}
    missing = []
    for stage1 in (available, available + 5):
        with pytest.raises(UserError) as error:
            build(tmp_path / str(stage1), corpus, tokenizer_folder, **fields, stage1=stage1)
        message = re.search(
            rf"mixture.parts.stage1: code is ([\d,]+) tokens short of its {stage1:,}", str(error.value)
        )
        assert message is not None
        missing.append(int(message.group(1).replace(",", "")))
    assert missing[1] == missing[0] + 5
    assert "\n" not in str(error.value)
    assert "or allow repetition: mixture.epochs.code=1.2 (nothing is repeated silently)" in str(error.value)


def test_a_short_source_is_repeated_only_as_told_and_never_across_parts(
    corpus: Path, tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    code = pq.read_table(corpus / "code.parquet")["text"].to_pylist()
    available = sum(len(tokenizer.encode(text)) + 1 for text in code)
    budgets = {"stage1": available, "stage2": available // 2, "heldout": 1000}
    fields = {"shares": {"code": 1.0}, **budgets}
    with pytest.raises(UserError) as error:
        build(tmp_path / "once", corpus, tokenizer_folder, **fields, epochs={"code": 1.2})
    remedy = str(error.value).split("mixture.epochs.code=")[1].split()[0]
    facts = build(tmp_path / "out", corpus, tokenizer_folder, **fields, epochs={"code": float(remedy)})
    assert 1.5 < facts["groups"]["code"]["epochs"] <= float(remedy)
    assert {part: facts["tokens"][part]["code"] for part in PARTS} == budgets
    rows = {part: documents(tmp_path / "out", part) for part in PARTS}
    keys = {part: {row["id"] for row in rows[part]} for part in PARTS}
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
    assert facts["texts_in_two_parts"] == 0
    assert {row["epoch"] for row in rows["heldout"]} == {0}
    assert {0, 1} <= {row["epoch"] for row in rows["stage1"]}
    repeated = sum(row["tokens"] for row in rows["stage1"] if row["epoch"])
    assert facts["repeated_tokens"]["stage1"]["code"] == repeated > 0.3 * available
    # Enough text is not repeated, whatever is allowed.
    plenty = build(tmp_path / "plenty", corpus, tokenizer_folder, epochs={"zh": 9.0})
    assert plenty["groups"]["zh"]["epochs"] == 1.0
    assert not any(plenty["repeated_tokens"]["stage1"].values())


def test_a_share_of_a_source_counts_to_it_alone(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    shares = {"reviews": 0.3, "en": 0.5, "code": 0.2}
    facts = build(
        tmp_path / "out", corpus, tokenizer_folder, shares=shares, stage1=20_000, stage2=5000, heldout=1000
    )
    found: Counter[str] = Counter()
    for row in documents(tmp_path / "out", "stage1"):
        found[row["source"]] += row["tokens"]
    assert found == {"reviews": 6000, "news": 10_000, "code": 4000}
    assert facts["tokens"]["stage1"] == {"reviews": 6000, "en": 10_000, "code": 4000}
    with pytest.raises(UserError, match=r"mixture\.shares: wiki: neither a source nor a language"):
        build(tmp_path / "no", corpus, tokenizer_folder, shares={"wiki": 1.0})


def test_no_spool_is_left(mixture_folder: Path) -> None:
    assert {path.name for path in mixture_folder.iterdir()} == set(PARTS)


@pytest.mark.parametrize("seed", range(4))
def test_equal_texts_go_to_one_part_whatever_their_ids_and_groups(
    seed: int, corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Every text stands up to five times, within sources and across the groups of the mixture."""
    (tmp_path / "corpus").mkdir()
    lengths = np.random.default_rng(seed)
    news = [text[:800] for text in pq.read_table(corpus / "news.parquet")["text"].to_pylist()]
    for source, language in (("first", "en"), ("second", "en"), ("third", "zh"), ("code", "code")):
        numbers = lengths.integers(len(news), size=150).tolist()
        columns = {
            "id": [f"{place}" for place in range(len(numbers))],
            "text": [news[number] for number in numbers],
            "language": [language] * len(numbers),
            "source": [source] * len(numbers),
            "extra": ["{}"] * len(numbers),
        }
        pq.write_table(pa.Table.from_pydict(columns, SCHEMA), tmp_path / "corpus" / f"{source}.parquet")
    table = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "corpus").glob("*.parquet")])
    text = {(row["source"], row["id"]): row["text"] for row in table.to_pylist()}
    shares = {"first": 0.4, "en": 0.3, "zh": 0.2, "code": 0.1}
    budgets = {"stage1": 8000, "stage2": 3000, "heldout": 2000}
    facts = build(
        tmp_path / "out", tmp_path / "corpus", tokenizer_folder, shares=shares, seed=seed, **budgets
    )
    parts = [{text[row["source"], row["id"]] for row in documents(tmp_path / "out", part)} for part in PARTS]
    assert all(parts)
    assert not any(a & b for a, b in combinations(parts, 2))
    assert facts["texts_in_two_parts"] == 0
    assert facts["groups"]["code"]["documents_in_other_groups"] > 0


def test_a_source_called_like_a_language_is_refused(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    row = {"id": "1", "text": "a b c", "language": "zh", "extra": "{}"}
    rows = [{**row, "source": "en"}, {**row, "source": "x", "language": "en"}]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "corpus" / "a.parquet")
    with pytest.raises(UserError, match=r"mixture\.shares: en: a language, and a source of another"):
        build(tmp_path / "out", tmp_path / "corpus", tokenizer_folder, shares={"en": 1.0})
