"""The comparison with T5 over transformers' own tests; with OPENBA_TRANSFORMERS_CHECKOUT set, all of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.weights.transformers_suite import figures, run_mixins
from openba.errors import UserError

CHECKOUT = os.environ.get("OPENBA_TRANSFORMERS_CHECKOUT")


def test_a_folder_without_its_tests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tests/test_modeling_common\.py; give a checkout"):
        run_mixins(tmp_path, tmp_path / "scratch")


def test_the_share_is_of_what_t5_passes() -> None:
    outcomes = {
        "T5ModelTest": {"a": "passed", "b": "passed", "c": "failed: x", "d": "passed"},
        "OpenBAModelTest": {"a": "passed", "b": "skipped: y", "c": "passed"},
    }
    (figure,) = figures(outcomes)
    assert figure.value == 50.0
    assert figure.ok is False
    assert figure.peer == "1 of the 2 that T5ModelTest passes"


@pytest.mark.skipif(CHECKOUT is None, reason="OPENBA_TRANSFORMERS_CHECKOUT names no checkout of transformers")
@pytest.mark.timeout(1800)
def test_openba_passes_what_t5_passes_of_saving_and_loading(tmp_path: Path) -> None:
    outcomes = run_mixins(Path(str(CHECKOUT)), tmp_path, "save_load or save_pretrained or load_save")
    assert {figure.value for figure in figures(outcomes)} == {100.0}
