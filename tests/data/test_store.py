"""The token store: one stream over shards, every window by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.data.store import DOCUMENTS, TokenStore, TokenWriter
from openba.errors import UserError


def rows(sizes: list[int], first: int = 0) -> pa.RecordBatch:
    count = len(sizes)
    columns = [["s"] * count, [str(first + i) for i in range(count)], ["zh"] * count, sizes, [0] * count]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, DOCUMENTS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=DOCUMENTS)


def write(folder: Path, batches: list[list[int]], shard_tokens: int) -> np.ndarray:
    """Documents of these sizes, batch by batch, their tokens counted through."""
    total = sum(map(sum, batches))
    ids = np.arange(total, dtype=np.int32)
    begin = documents = 0
    with TokenWriter(folder, shard_tokens) as writer:
        for sizes in batches:
            writer.append(ids[begin : begin + sum(sizes)], rows(sizes, documents))
            begin, documents = begin + sum(sizes), documents + len(sizes)
    return ids


sizes = st.lists(st.lists(st.integers(1, 40), max_size=6), max_size=6)


@settings(max_examples=40, deadline=None)
@given(batches=sizes, shard_tokens=st.integers(1, 50), length=st.integers(1, 30))
def test_nothing_is_lost_at_any_border(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], shard_tokens: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    ids = write(folder, batches, shard_tokens)
    store = TokenStore(folder)
    assert len(store) == len(ids)
    np.testing.assert_array_equal(store.tokens(0, len(ids)), ids)
    assert store.count(length) == len(ids) // length
    windows = store.windows(np.arange(store.count(length)), length)
    np.testing.assert_array_equal(windows.ravel(), ids[: windows.size])
    flat = [size for batch in batches for size in batch]
    assert store.documents["tokens"].to_pylist() == flat
    begins = np.concatenate([[0], np.cumsum(flat)])
    for number in range(len(flat)):
        np.testing.assert_array_equal(
            store.document(number), np.arange(begins[number], begins[number + 1], dtype=np.int32)
        )


def test_shards_are_plain_numpy_files_of_one_size(tmp_path: Path) -> None:
    ids = write(tmp_path, [[30, 30], [45]], 50)
    shards = [np.load(path, mmap_mode="r") for path in sorted(tmp_path.glob("tokens-*.npy"))]
    assert [len(shard) for shard in shards] == [50, 50, 5]
    np.testing.assert_array_equal(np.concatenate(shards), ids)
    view = TokenStore(tmp_path).tokens(10, 50)
    assert view.base is not None  # not copied
    assert not view.flags.writeable


def test_a_cut_or_lost_file_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a", [[30, 30]], 50)
    (tmp_path / "a" / "tokens-00001.npy").unlink()
    with pytest.raises(UserError, match=r"50 tokens in its shards, 60 in offsets\.npy; build it again"):
        TokenStore(tmp_path / "a")
    write(tmp_path / "b", [[30, 30]], 50)
    shard = tmp_path / "b" / "tokens-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a readable token store"):
        TokenStore(tmp_path / "b")
    with pytest.raises(UserError, match="not a readable token store"):
        TokenStore(tmp_path / "none")


def test_rows_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with TokenWriter(tmp_path) as writer, pytest.raises(ValueError, match="9 ids for documents of 10"):
        writer.append(np.arange(9, dtype=np.int32), rows([5, 5]))
