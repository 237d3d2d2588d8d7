"""The whole cleaning chain on short texts of which the right result is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.test_clean_corpus import clean

CASES = [
    json.loads(line)
    for line in (Path(__file__).with_name("clean_meaning.jsonl")).read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    texts = {"cases": [case["text"] for case in CASES]}
    return clean(tmp_path_factory.mktemp("meaning"), texts)[0]["cases"]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 120
    assert len({case["text"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case["id"] for case in CASES])
def test_the_meaning_of_a_text_is_kept(number: int, cleaned: dict[str, str]) -> None:
    assert cleaned.get(str(number), "") == CASES[number]["right"]
