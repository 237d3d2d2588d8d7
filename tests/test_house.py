"""How the code reads, as figures with limits: what `python -m tests.house` prints for the whole tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import House, is_fragment, measure

LIMITS = {
    "fragment_percent": 1.0,
    "tuples_per_1000": 1.0,
    "vague_percent": 0.1,
    "any_per_1000": 4.0,
}
"""Upper limits over openba, tasks and flows."""
LEAST = {"comment_percent": 2.6, "underscore_percent": 30.0}
"""Lower limits over the same; the aims are 3 and 30."""


@pytest.fixture(scope="module")
def house(root: Path) -> House:
    return measure([root / package for package in ("openba", "tasks", "flows")])


@pytest.mark.parametrize("figure", LIMITS)
def test_no_more_of_it_than_the_limit(house: House, figure: str) -> None:
    assert house.row()[figure] <= LIMITS[figure], "python -m tests.house FOLDER names the lines"


@pytest.mark.parametrize("figure", LEAST)
def test_no_less_of_it_than_the_limit(house: House, figure: str) -> None:
    assert house.row()[figure] >= LEAST[figure], "python -m tests.house prints it by package"


def test_no_comprehension_is_nested_deeper_than_two(house: House) -> None:
    assert [str(place) for place in house.places if place.rule == "deep comprehension"] == []


@pytest.mark.parametrize(
    ("documentation", "expected"),
    [
        ("Return the rows.", False),
        ("Mean loss per target token, in nats.", False),
        ("Where a decoder block's queries look.", True),
        ("Of one run of the step; of what a run before did only `done` speaks.", True),
        ("Told of after every step.", True),
    ],
)
def test_fragments_are_told_from_sentences(documentation: str, expected: bool) -> None:
    assert is_fragment(documentation) is expected


def test_assignments_of_several_values_are_counted_but_not_swaps(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("a, b = 1, 2\na, b = b, a\nself.a, self.b = a, b\na, b = f()\n")
    assert measure([code]).tuple_assignments == 1
