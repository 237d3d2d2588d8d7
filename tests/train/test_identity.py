"""What a checkpoint belongs to: files by content, not by place or time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.train.identity import _digest


@settings(max_examples=30)
@given(size=st.integers(1, 2**18), place=st.floats(0, 1, exclude_max=True))
def test_a_change_in_a_small_file_shows(
    tmp_path_factory: pytest.TempPathFactory, size: int, place: float
) -> None:
    file = tmp_path_factory.mktemp("file") / "tokens.npy"
    data = np.random.default_rng(size).integers(0, 255, size, np.uint8)
    file.write_bytes(data.tobytes())
    before = _digest(file)
    assert _digest(file) == before
    data[int(place * size)] ^= 1
    file.write_bytes(data.tobytes())
    assert _digest(file) != before
    file.write_bytes(data.tobytes()[:-1])
    assert _digest(file) != before


def test_a_large_file_is_read_in_part(tmp_path: Path) -> None:
    file = tmp_path / "tokens.npy"
    with file.open("wb") as store:
        store.truncate(2**34)  # sixteen GiB of nothing
    assert len(_digest(file)) == 16
