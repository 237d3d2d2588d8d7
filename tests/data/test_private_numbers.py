"""Further private values: what has its own evidence goes, look-alikes stay."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.private_numbers import LOOK_ALIKES, measure
from openba.data.clean.edits import apply
from openba.data.clean.private_numbers import PrivateNumbers
from openba.data.clean.stages import stage_names
from openba.recipes.clean import CleanRecipe
from tests.data.batches import edits_of
from tests.data.test_clean_corpus import ONLY, clean

VALUES = {
    "id_card": ["11010519491231002X", "１１０１０５１９４９１２３１００２Ｘ", "53010219200508011x"],
    "bank_card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011111111111117"],
    "passport": ["护照号：E12345678", "passport no. G12345678", "护照EA1234567"],
    "qq": ["QQ：12345", "加我qq群 987654321", "扣扣号是1234567890"],
    "wechat": ["微信号：li_lei-88", "vx: abc12345", "加微信13800138000"],
    "ip": ["8.8.4.4", "来自 192.168.31.7 的访问", "2001:db8::8a2e:370:7334"],
    "plate": ["京A12345", "粤B·D12345", "沪AD12345", "川A1234学", "粤B8K2X9"],
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_is_found_by_its_own_kind(kind: str) -> None:
    for value in VALUES[kind]:
        text = f"他说：{value}，谢谢。"
        assert [edit.rule for edit in edits_of(PrivateNumbers(), text)] == [kind], value
        assert edits_of(PrivateNumbers([kind]), text)
        others = [other for other in VALUES if other != kind]
        assert not edits_of(PrivateNumbers(others), text), value


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_look_alikes_stay(text: str) -> None:
    assert edits_of(PrivateNumbers(), text) == []


@given(st.text(st.sampled_from("0123456789 .-:Xx京A微信QQ护照号：E"), max_size=60))
def test_what_is_left_holds_no_more_than_before(text: str) -> None:
    edits = edits_of(PrivateNumbers(), text)
    assert all(first.end <= second.start for first, second in pairwise(edits))
    assert len(apply(text, edits)) <= len(text)


@pytest.mark.parametrize("kind", VALUES)
def test_precision_and_recall_on_planted_values(kind: str) -> None:
    precision, recall = measure(kind, documents=400)
    assert precision >= 0.99
    assert recall >= 0.97


def test_off_by_default_and_before_the_phone_numbers(tmp_path: Path) -> None:
    assert "private_numbers" not in CleanRecipe().model_dump()
    recipe = CleanRecipe(private_numbers=("id_card", "ip"))
    names = stage_names(recipe)
    assert names.index("private_numbers") < names.index("privacy")
    only = CleanRecipe.model_validate(ONLY | {"private_numbers": ["id_card"]})
    kept, removed, facts = clean(tmp_path, {"a": ["证件11010519491231002X，来自8.8.4.4。"]}, only)
    assert kept["a"]["0"] == "证件，来自8.8.4.4。"
    assert [(row["stage"], row["rule"]) for row in removed] == [("private_numbers", "id_card")]
    assert "11010519491231002X" not in str(facts)


PIECES = [value for values in VALUES.values() for value in values]
PIECES += [
    *LOOK_ALIKES[:20],
    "：",
    ":",
    " ",
    "　",
    "-",
    ".",
    "a",
    "f0",
    "1",
    "12",
    "W",
    "wei",
    "京",
    "ı",
    "v",
    "信",
]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_the_search_for_candidates_loses_no_value(text: str) -> None:
    """The compiled search only saves the patterns work: they find the same where they see every text."""
    chosen = PrivateNumbers()
    assert edits_of(chosen, text) == chosen.find_in_text(text)
