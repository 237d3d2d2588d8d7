"""A stage's log files: whole after a crash, each step once after a resume, time of the dead accounted for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from openba.train.log import ATTEMPTS, EVENTS, HELDOUT, METRICS, StageLog, read_rows


@pytest.fixture
def log(tmp_path: Path) -> StageLog:
    """A stage that began, measured and logged five steps, and died while it wrote the sixth."""
    log = StageLog(tmp_path, enabled=True)
    log.begin(0)
    log.write(HELDOUT, {"step": 0, "loss": 9.0})
    for step in range(1, 6):
        log.write(METRICS, {"step": step, "loss": 9.0 - step, "time": time.time() + step})
    log.write(HELDOUT, {"step": 4, "loss": 5.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "lo')
    return log


def steps(log: StageLog, name: str) -> list[int]:
    return [row["step"] for row in log.rows(name)]


def test_a_row_cut_short_is_left_out(log: StageLog) -> None:
    assert steps(log, METRICS) == [1, 2, 3, 4, 5]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / METRICS) == []


def test_a_resume_cuts_what_is_run_again(log: StageLog) -> None:
    log.begin(3)
    assert steps(log, METRICS) == [1, 2, 3]
    assert steps(log, HELDOUT) == [0]
    log.write(METRICS, {"step": 4, "time": 0.0})  # not glued to the row that was cut short
    assert steps(log, METRICS) == [1, 2, 3, 4]
    lines = (log.folder / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_start_from_the_beginning_keeps_nothing(log: StageLog) -> None:
    log.begin(0)
    assert steps(log, METRICS) == steps(log, HELDOUT) == []
    assert [row["from"] for row in log.rows(ATTEMPTS)] == [0, 0]


def test_the_time_of_a_dead_group_counts_up_to_its_last_row(log: StageLog) -> None:
    log.begin(3)
    first, second = log.rows(ATTEMPTS)
    assert first["seconds"] == pytest.approx(5, abs=0.2)
    assert "seconds" not in second
    log.begin(3)  # the second died before it logged a step
    assert log.rows(ATTEMPTS)[1]["seconds"] == pytest.approx(0, abs=3)
    assert log.rows(ATTEMPTS)[0] == first


def test_the_end_closes_the_last_attempt(log: StageLog) -> None:
    log.begin(3)
    log.end({"cpu": 12.5, "gpu": None}, {"kwh": 0.25})
    first, second = log.rows(ATTEMPTS)
    assert "joules" not in first
    assert (second["joules"], second["estimated"]) == ({"cpu": 12.5, "gpu": None}, {"kwh": 0.25})
    assert 0 <= second["seconds"] < 5


def test_only_rank_zero_writes(tmp_path: Path) -> None:
    log = StageLog(tmp_path, enabled=False)
    log.begin(0)
    log.write(METRICS, {"step": 1})
    log.end({}, {})
    assert list(tmp_path.iterdir()) == []


def test_fault_31_rows_wait_for_room_on_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = StageLog(tmp_path, enabled=True)
    log.begin(0)
    log.write(METRICS, {"step": 1})
    log.folder.joinpath(METRICS).rename(tmp_path / "before")
    (tmp_path / METRICS).symlink_to("/dev/full")  # the kernel's own full disk
    for step in (2, 3):
        log.write(METRICS, {"step": step})
    assert "No space left on device" in capsys.readouterr().err
    (tmp_path / METRICS).unlink()
    (tmp_path / "before").rename(tmp_path / METRICS)
    log.write(METRICS, {"step": 4})
    log.write(METRICS, {"step": 5})
    assert steps(log, METRICS) == [1, 2, 3, 4, 5]


def test_fault_31_a_clock_that_jumps_changes_no_duration(log: StageLog) -> None:
    log.begin(3)
    attempts = log.rows(ATTEMPTS)
    attempts[-1]["time"] += 3600  # as if the clock had been set back since
    log._rewrite(ATTEMPTS, attempts)
    log.end({}, {})
    assert 0 <= log.rows(ATTEMPTS)[-1]["seconds"] < 5


def test_events_that_led_to_a_roll_back_stay(tmp_path: Path) -> None:
    log = StageLog(tmp_path, enabled=True)
    for event, step in [("skipped", 3), ("skipped", 8), ("rolled back", 5), ("skipped", 7)]:
        log.event(event, step)
    log.cut(6)
    assert [row["step"] for row in log.rows(EVENTS)] == [3, 8, 5]
    log.cut(4)
    assert [row["step"] for row in log.rows(EVENTS)] == [3]
