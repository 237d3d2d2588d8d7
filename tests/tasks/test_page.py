"""Prefect's page: pictures that carry all they need, keys that Prefect takes. What it shows: tests/infra."""

from __future__ import annotations

import base64
from pathlib import Path
from xml.etree import ElementTree

import pytest

from openba.report.charts import loss_chart
from tasks.page import Page, picture


def test_a_picture_is_a_whole_svg() -> None:
    address = picture(loss_chart("stage1", [{"step": s, "loss": 9 - s} for s in range(1, 5)]))  # type: ignore[arg-type, misc]
    head, _, body = address.partition(",")
    assert head == "data:image/svg+xml;base64"
    drawn = ElementTree.fromstring(base64.b64decode(body))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    used = {
        name for name in ("ink", "muted", "rule", "c1") if f"var(--{name})" in base64.b64decode(body).decode()
    }
    assert all(f"--{name}:" in (drawn[0].text or "") for name in used)
    assert used


def test_keys_are_of_letters_digits_and_dashes() -> None:
    assert Page("tiny_2").key("Stage 1", "loss") == "openba-tiny-2-stage-1-loss"


def test_outside_a_flow_run_nothing_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No artifact is made, and no server asked for one: that would be a warning."""
    page = Page("tiny")
    page.start("stage1")
    page.advance("stage1", tmp_path, 10)
    page.finish("stage1", tmp_path)
    page.close([], {"Ray dashboard": "http://127.0.0.1:8265"})
    assert page._progress == {}
    assert caplog.records == []
