"""Texts as code points: the way from UTF-8 and back is Python's, for whatever bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from openba.data.clean import text_arrays

PARTS = st.one_of(
    st.binary(max_size=6),
    st.text(max_size=6).map(str.encode),
    st.sampled_from(
        [b"\xed\xa0\x80", b"\xe0\x80\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe4\xbd", b"\xf0\x9f\x99"]
    ),
)
TEXTS = st.lists(st.lists(PARTS, max_size=4).map(b"".join), max_size=6)


def array_of(texts: list[bytes]) -> pa.Array:
    """Bytes as an Arrow text column, whatever they are."""
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts) + b"\0")]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers)


def read(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


@settings(deadline=None)  # the first call compiles
@given(TEXTS)
def test_decoding_is_pythons(texts: list[bytes]) -> None:
    array, wanted = array_of(texts), [read(text) for text in texts]
    decoded, bad = text_arrays.decode(array)
    assert bad.tolist() == text_arrays.find_invalid(array).tolist() == [text is None for text in wanted]
    assert [decoded.text(row) for row in range(len(texts))] == [text or "" for text in wanted]
    assert text_arrays.encode(decoded).to_pylist() == [text or "" for text in wanted]
    assert list(text_arrays.iterate_utf8(decoded)) == [(text or "").encode() for text in wanted]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.text(alphabet=" \u3000\xa0\nx中é🙂\u2003", max_size=3), max_size=8))
def test_blank_is_what_python_strips_to_nothing(texts: list[str]) -> None:
    assert text_arrays.find_blank(pa.array(texts, pa.large_string())).tolist() == [
        not text.strip() for text in texts
    ]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.text(max_size=5), max_size=6), st.data())
def test_sizes_are_bytes(texts: list[str], data: st.DataObject) -> None:
    decoded, _ = text_arrays.decode(pa.array(texts, pa.large_string()))
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), unique=True)) if texts else []
    assert text_arrays.utf8_size(decoded) == sum(len(text.encode()) for text in texts)
    assert text_arrays.utf8_size_of(decoded, np.array(rows, np.int64)) == sum(
        len(texts[row].encode()) for row in rows
    )
