"""pytest plugin that writes the outcome of each test to the file that OPENBA_SUITE_OUTCOMES names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_outcomes: dict[str, dict[str, str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Leave out the tests that T5's class has of its own, in place of the mixins' or beside them."""
    items[:] = [item for item in items if not item.function.__module__.startswith("tests.models.")]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a phase of a test; a failure of any phase is the test's."""
    # A set-up that passes says nothing of the test yet.
    if report.when != "call" and report.passed:
        return
    class_name, _, test_name = report.nodeid.rpartition("::")
    class_name = class_name.rpartition("::")[2]
    outcome: str = report.outcome
    if report.failed:
        outcome = f"failed: {_reason(report)}"
    elif report.skipped and isinstance(report.longrepr, tuple):
        outcome = f"skipped: {report.longrepr[2]}"
    _outcomes.setdefault(class_name, {})[test_name] = outcome


def _reason(report: pytest.TestReport) -> str:
    """Return the last line that names an error, with the place in the file that raised it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return " ".join(str(report.longrepr).split())[-200:]
    message = " ".join(str(crash.message).split())[:200]
    return f"{message} ({Path(crash.path).name}:{crash.lineno})"


def pytest_sessionfinish() -> None:
    """Write the file."""
    Path(os.environ["OPENBA_SUITE_OUTCOMES"]).write_text(json.dumps(_outcomes, indent=1), encoding="utf-8")
