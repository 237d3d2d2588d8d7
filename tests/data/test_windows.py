"""Windows of a token store: documents crossed in one, or one document each, and what samples of both fill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openba.config import CONFIGS, load
from openba.data.store import TokenStore
from openba.data.windows import BoundedWindows, CrossedWindows, mean_fill, windows_of
from openba.recipes.train import PrefixRecipe, TrainRecipe
from tests.data.test_denoise import LENGTHS
from tests.data.test_store import write

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=200)


@settings(max_examples=60, deadline=None)
@given(document_sizes=sizes, length=st.integers(3, 40))
def test_bounded_windows_tile_each_document_and_none_crosses_its_end(
    tmp_path_factory: pytest.TempPathFactory, document_sizes: list[int], length: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    write(folder, [document_sizes], 50)
    store = TokenStore(folder)
    windows = BoundedWindows(store, length)
    begins, lengths = windows.places(np.arange(len(windows)))
    covered: list[int] = []
    for begin, window_length in zip(begins.tolist(), lengths.tolist(), strict=True):
        assert 2 <= window_length <= length
        covered += range(begin, begin + window_length)
    expected = []
    for number, document_size in enumerate(document_sizes):
        if document_size > 1:
            expected += range(int(store.offsets[number]), int(store.offsets[number + 1]))
    assert covered == expected
    first_documents = np.searchsorted(store.offsets, begins, "right")
    np.testing.assert_array_equal(
        first_documents, np.searchsorted(store.offsets, begins + lengths - 1, "right")
    )
    np.testing.assert_array_equal(windows.length_counts(), np.bincount(lengths, minlength=length + 1))
    # In any order of the numbers, as a training asks for them.
    order = np.random.default_rng(0).permutation(len(windows))
    np.testing.assert_array_equal(windows.places(order)[0], begins[order])


def test_a_long_document_is_divided_evenly(tmp_path: Path) -> None:
    write(tmp_path, [[600, 5]], 1000)
    begins, lengths = BoundedWindows(TokenStore(tmp_path), 568).places(np.arange(3))
    assert (begins.tolist(), lengths.tolist()) == ([0, 300, 600], [300, 300, 5])


def test_crossed_windows_are_those_of_the_stream(tmp_path: Path) -> None:
    write(tmp_path, [[30, 45, 30]], 50)
    store = TokenStore(tmp_path)
    windows = windows_of(store, PrefixRecipe(objective="prefix", length=25))
    assert isinstance(windows, CrossedWindows)
    begins, lengths = windows.places(np.arange(len(windows)))
    assert (begins.tolist(), set(lengths.tolist())) == ([0, 25, 50, 75], {25})
    assert windows.length_counts()[25] == windows.length_counts().sum() == 4


def test_a_recipe_with_crossed_windows_has_the_fingerprint_that_it_had() -> None:
    crossed = PrefixRecipe(objective="prefix", length=64)
    assert "windows" not in crossed.model_dump(mode="json")
    assert PrefixRecipe(objective="prefix", length=64, windows="crossed") == crossed
    bounded = PrefixRecipe(objective="prefix", length=64, windows="bounded").model_dump(mode="json")
    assert bounded["windows"] == "bounded"


def test_windows_that_cannot_be_divided_in_two_are_refused() -> None:
    with pytest.raises(ValidationError, match="length: 2 with bounded windows; the least is 3"):
        PrefixRecipe(objective="prefix", length=2, windows="bounded")


def test_fill_is_what_the_samples_have() -> None:
    """Stage I: means of the release's table of lengths; half the windows at half the length."""
    train = load(CONFIGS / "pretrain" / "stage1.yaml", TrainRecipe)
    full = mean_fill(train, np.bincount([568]))
    assert full == pytest.approx(tuple(np.mean(LENGTHS, axis=0) / (570, 380)))
    half = mean_fill(train, np.bincount([568, 284]))
    assert half[0] == pytest.approx(0.75 * full[0], rel=0.01)
