"""Every row of `python -m benchmarks gpu`, on a CPU and small."""

from __future__ import annotations

import pytest

from benchmarks.gpu.measure import measure


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return list(measure("cpu", small=True))


def test_no_row_fails(rows: list[dict[str, object]]) -> None:
    assert [row for row in rows if "error" in row] == []
    assert len({row["part"] for row in rows}) == 7


def test_bf16_is_near_fp32(rows: list[dict[str, object]]) -> None:
    (row,) = [row for row in rows if "gradient_cosine" in row]
    assert row["loss"] == pytest.approx(row["loss_fp32"], rel=1e-3)
    assert float(str(row["gradient_cosine"])) > 0.999


def test_every_case_of_the_slice_is_timed(rows: list[dict[str, object]]) -> None:
    cases = [row["case"] for row in rows if "case" in row]
    assert cases == ["padded", "packed", "compiled", "transformers T5"]
