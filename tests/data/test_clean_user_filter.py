"""A filter of the user's own: one class in a module outside the package, and one key of the recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from openba.artifacts import Step
from openba.data.clean import passes
from openba.data.clean.filter import load_filter
from openba.errors import UserError
from openba.graph import CORPUS
from openba.recipes.clean import CleanRecipe, FilterRecipe
from openba.recipes.data import CorpusRecipe
from tests.data.test_clean_corpus import LONG, ONLY, clean

MODULE = '''
from openba.data.clean.edits import Edit
from openba.data.clean.filter import Filter


class Shouting(Filter):
    """Remove words of several capital letters, and texts that are nothing else."""

    name = "shouting"
    rules = ("shouting", "only_shouting")
    version = "{version}"

    def __init__(self, shortest: int = 4) -> None:
        self.shortest = shortest

    def find_in_text(self, text):
        if text.isascii() and text.replace(" ", "").isalpha() and text.isupper():
            return [Edit(0, len(text), "only_shouting")]
        edits, position = [], 0
        for word in text.split(" "):
            if word.isupper() and len(word) >= self.shortest:
                edits.append(Edit(position, position + len(word), "shouting"))
            position += len(word) + 1
        return edits


class NoFilter:
    version = "1"
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that only the user has."""
    path = tmp_path / "package" / "users_filters.py"
    path.parent.mkdir()
    path.write_text(MODULE.format(version="1"))
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setenv("PYTHONPATH", str(path.parent), prepend=":")
    yield path
    sys.modules.pop("users_filters", None)


def recipe(**options: Any) -> CleanRecipe:
    filters = [{"filter": "users_filters:Shouting", "options": options}]
    return CleanRecipe.model_validate(ONLY | {"privacy": True, "filters": filters})


def fingerprint(chosen: CleanRecipe) -> str:
    """Return the fingerprint with a fixed version of the kind, which other changes raise."""
    kind = replace(CORPUS, version="6")
    return Step("clean", kind, CorpusRecipe(sources={"a": chosen})).fingerprint


def test_a_users_filter_cleans_counts_and_records(module: Path, tmp_path: Path) -> None:
    texts = {"a": [f"{LONG} BUY NOW!", "BUY NOW", "138 BUYIT 1234 NOWNOW 5678", f"{LONG} OK"]}
    cleaned, removed, facts = clean(tmp_path, texts, recipe())
    assert cleaned["a"] == {"0": f"{LONG} BUY", "3": f"{LONG} OK"}
    assert [(row["id"], row["stage"], row["rule"]) for row in removed] == [
        ("0", "shouting", "shouting"),
        ("1", "shouting", "only_shouting"),
        ("2", "shouting", "shouting"),
        ("2", "shouting", "shouting"),
        ("2", "privacy_last", "phone"),
    ]
    assert [row["stage"] for row in facts["funnel"]] == ["privacy", "shouting", "privacy_last"]
    assert facts["removed"] == {"privacy": 0, "shouting": 4, "privacy_last": 1}
    assert {example["rule"] for example in facts["examples"]["shouting"]} >= {"only_shouting"}


def test_options_reach_the_filter(module: Path, tmp_path: Path) -> None:
    texts = {"a": [f"{LONG} ABCD ABCDEFGH"]}
    cleaned, _, _ = clean(tmp_path, texts, recipe(shortest=8))
    assert cleaned["a"] == {"0": f"{LONG} ABCD"}


def test_it_runs_in_other_processes(module: Path, tmp_path: Path) -> None:
    with passes.Processes(2) as mapper:
        cleaned, _, _ = clean(tmp_path, {"a": [f"{LONG} ABCD"]}, recipe(), mapper=mapper)
    assert cleaned["a"] == {"0": LONG}


def test_its_version_and_options_are_hashed(module: Path) -> None:
    first = fingerprint(recipe())
    assert fingerprint(recipe()) == first
    assert fingerprint(recipe(shortest=5)) != first
    module.write_text(MODULE.format(version="version two"))
    sys.modules.pop("users_filters")
    assert fingerprint(recipe()) != first


def test_recipes_without_own_filters_have_the_fingerprint_of_before() -> None:
    """The fingerprint is that of the commit before there were own filters: stores stay valid."""
    assert "filters" not in CleanRecipe().model_dump(mode="json")
    assert fingerprint(CleanRecipe()) == "5dc51ecaa47e"


def test_two_filters_of_one_name_are_refused(module: Path, tmp_path: Path) -> None:
    filters = [{"filter": "users_filters:Shouting", "options": {"shortest": length}} for length in (4, 5)]
    twice = CleanRecipe.model_validate(ONLY | {"filters": filters})
    with pytest.raises(UserError, match="two stages are called 'shouting'"):
        clean(tmp_path, {"a": [LONG]}, twice)


def test_another_version_on_a_worker_is_refused(module: Path) -> None:
    (chosen,) = recipe().filters
    stored = FilterRecipe.model_validate_json(chosen.model_dump_json())
    assert stored == chosen
    older = chosen.model_copy(update={"version": "0"})
    with pytest.raises(UserError, match="has version 1 here and 0 where the pipeline was started"):
        load_filter(older)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users_filters", "expected package.module:Class"),
        ("absent_package.filters:Mine", "cannot be imported"),
        ("users_filters:Absent", "cannot be imported"),
    ],
)
def test_a_filter_that_cannot_be_imported_is_refused_with_its_name(
    module: Path, name: str, message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        CleanRecipe.model_validate({"filters": [{"filter": name}]})
    assert name in str(error.value)


def test_a_class_that_is_no_filter_and_wrong_options_are_refused(module: Path) -> None:
    other = CleanRecipe.model_validate({"filters": [{"filter": "users_filters:NoFilter"}]})
    with pytest.raises(UserError, match="not derived from"):
        load_filter(other.filters[0])
    with pytest.raises(UserError, match="refuses its options"):
        load_filter(recipe(smallest=3).filters[0])
