"""A stage's log files: whole after a crash, each step once after a resume, time of the dead accounted for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from openba.train.log import ATTEMPTS, EVENTS, HELDOUT, METRICS, NewRows, StageLog, read_rows


@pytest.fixture
def log(tmp_path: Path) -> StageLog:
    """A stage that began, measured and logged five steps, and died while it wrote the sixth."""
    log = StageLog(tmp_path, enabled=True)
    log.begin(0)
    log.write(HELDOUT, {"step": 0, "loss": 9.0})
    for step in range(1, 6):
        clock = {"time": time.time() + step, "attempt": 0, "attempt_seconds": float(step)}
        log.write(METRICS, {"step": step, "loss": 9.0 - step, **clock})
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
    assert first["seconds"] == 5
    assert "seconds" not in second
    log.begin(3)  # the second died before it logged a step
    assert log.rows(ATTEMPTS)[1]["seconds"] == 0
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


def test_a_clock_that_jumps_changes_no_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dead attempts and one that ends, while the wall clock jumps by a day: their seconds add up."""
    log = StageLog(tmp_path, enabled=True)
    for day in range(3):
        monkeypatch.setattr(time, "time", lambda day=day: 1e9 - 86_400 * day)
        log.begin(0)
        if day < 2:
            clock = {"time": time.time(), "attempt": log.attempt, "attempt_seconds": 1.4}
            log.write(METRICS, {"step": 1, "loss": 9.0, **clock})
    log.end({}, {})
    assert sum(row["seconds"] for row in log.rows(ATTEMPTS)) == pytest.approx(2.8, abs=0.5)


@pytest.mark.parametrize("name", [METRICS, EVENTS, HELDOUT, ATTEMPTS])
@pytest.mark.parametrize("damage", [b"\0" * 300, b'{"step": 9}garbage\n', b"\xff\xfe\n[1]\n"])
def test_broken_lines_are_cut_and_reported(
    log: StageLog, name: str, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    log.event("skipped", 2)
    before = {file: log.rows(file) for file in (METRICS, HELDOUT, EVENTS)}
    with (log.folder / name).open("ab") as file:
        file.write(damage)
    again = StageLog(log.folder, enabled=True)
    again.begin(5)
    assert f"{log.folder / name}: " in capsys.readouterr().err
    assert [again.rows(file) for file in (METRICS, HELDOUT)] == [before[METRICS], before[HELDOUT]]
    events = again.rows(EVENTS)
    assert events[: len(before[EVENTS])] == before[EVENTS]
    assert events[-1]["event"] == "log repaired"
    for file in (METRICS, HELDOUT, EVENTS, ATTEMPTS):
        for line in (log.folder / file).read_text().splitlines():
            json.loads(line)


def test_a_resume_takes_lost_rows_from_the_checkpoint(log: StageLog) -> None:
    log.event("rolled back", 2, shift=3, roll_backs=1)
    saved, rows = log.snapshot(), {name: log.rows(name) for name in (METRICS, HELDOUT, EVENTS)}
    for name in (METRICS, HELDOUT, EVENTS, ATTEMPTS):
        (log.folder / name).unlink()
    again = StageLog(log.folder, enabled=True)
    again.begin(5, saved)
    assert {name: again.rows(name) for name in rows} == rows
    assert [row["from"] for row in again.rows(ATTEMPTS)] == [0, 5]


@pytest.mark.parametrize("damage", ["flipped", "removed", "cut"])
def test_a_file_that_changed_meanwhile_is_written_anew(log: StageLog, damage: str) -> None:
    log.begin(5)
    path, expected = log.folder / METRICS, log.rows(METRICS)
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[20] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:-7])
    log.write(METRICS, {"step": 6, "loss": 3.0})
    log.verify(6)
    assert read_rows(path) == [*expected, {"step": 6, "loss": 3.0}]
    assert log.rows(EVENTS)[-1] | {"time": 0} == {
        "event": "log repaired",
        "step": 6,
        "file": METRICS,
        "time": 0,
    }
    log.verify(6)
    assert len([row for row in log.rows(EVENTS) if row["event"] == "log repaired"]) <= 2


def test_numbers_that_are_not_finite_are_null(log: StageLog) -> None:
    log.write(METRICS, {"step": 6, "loss": float("nan"), "parts": [float("inf"), 1.5]})
    line = (log.folder / METRICS).read_bytes().splitlines()[-1]
    assert b"NaN" not in line
    assert b"Infinity" not in line
    assert log.rows(METRICS)[-1] == {"step": 6, "loss": None, "parts": [None, 1.5]}


def test_new_rows_reads_each_row_once(tmp_path: Path) -> None:
    log = StageLog(tmp_path, enabled=True)
    log.begin(0)
    reader = NewRows(tmp_path / METRICS)
    assert reader.read() == []
    for step in range(1, 4):
        log.write(METRICS, {"step": step})
        assert [row["step"] for row in reader.read()] == [step]
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4')
    assert reader.read() == []
    with (tmp_path / METRICS).open("a") as file:
        file.write("}\n")
    assert [row["step"] for row in reader.read()] == [4]
    assert not reader.rewritten
    log.cut(2)
    assert [row["step"] for row in reader.read()] == [1, 2]
    assert reader.rewritten


def test_new_rows_costs_no_more_in_a_long_file(tmp_path: Path) -> None:
    """77,000 rows, as a training of the paper has: a look reads what is new, not the file."""
    row = json.dumps({"step": 1, **{f"figure_{n}": 1.234567 for n in range(20)}}) + "\n"
    (tmp_path / METRICS).write_text(row * 77_000)
    reader = NewRows(tmp_path / METRICS)
    assert len(reader.read()) == 77_000
    began = time.process_time()
    for _ in range(100):
        assert reader.read() == []
    assert time.process_time() - began < 0.1  # parsing the file takes about a second each time


def test_events_that_led_to_a_roll_back_stay(tmp_path: Path) -> None:
    log = StageLog(tmp_path, enabled=True)
    for event, step in [("skipped", 3), ("skipped", 8), ("rolled back", 5), ("skipped", 7)]:
        log.event(event, step)
    log.cut(6)
    assert [row["step"] for row in log.rows(EVENTS)] == [3, 8, 5]
    log.cut(4)
    assert [row["step"] for row in log.rows(EVENTS)] == [3]
