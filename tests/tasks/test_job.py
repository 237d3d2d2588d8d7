"""A job's patience with worker groups that die, and when it says that it began."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openba import durable
from openba.errors import UserError
from openba.train.checkpoint import MARKER
from tasks.job import ERROR, PROCESS, SPEC, Patience, _is_same_error, _of_program


def reach(out: Path, step: int) -> None:
    folder = out / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def test_fault_32_a_crash_loop_ends_and_progress_gives_new_tries(tmp_path: Path) -> None:
    patience = Patience(tmp_path, 2)
    assert [patience.lasts() for _ in range(3)] == [True, True, False]
    reach(tmp_path, 5)
    assert [patience.lasts() for _ in range(3)] == [True, True, False]
    reach(tmp_path, 6)
    assert patience.lasts()
    (tmp_path / "checkpoints" / "step-000007.tmp").mkdir()  # a write that died is no progress
    (tmp_path / "checkpoints" / "step-000006").rename(tmp_path / "checkpoints" / "step-000006.damaged")
    assert patience.reached == 6


def test_no_try_again_if_none_is_allowed(tmp_path: Path) -> None:
    assert not Patience(tmp_path, 0).lasts()


def test_a_job_says_when_its_process_began(tmp_path: Path) -> None:
    durable.write_record(tmp_path / SPEC, {"place": "job", "function": "json:no_such_function"})
    before = time.time()
    assert subprocess.run([sys.executable, "-m", "tasks.job", tmp_path], capture_output=True).returncode
    began = json.loads((tmp_path / PROCESS).read_text())["began"]
    assert before - 0.05 < began < time.time()  # the kernel counts hundredths


def raised(make: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the test's argument
        make()
    return caught.value


@pytest.mark.parametrize(
    "make", [lambda: {}["loss"], lambda: 1 / 0, lambda: int("x"), lambda: [].missing, lambda: 1 + ""]
)
def test_an_error_of_the_program_is_told_once_and_not_tried_again(
    tmp_path: Path, make: Callable[[], object]
) -> None:
    told = _of_program(raised(make), tmp_path / "rank-0.traceback")
    assert isinstance(told, UserError)
    assert "test_job.py, line" in str(told)
    assert "not tried again" in str(told)
    assert "\n" not in str(told)


@pytest.mark.parametrize(
    "error", [RuntimeError("Connection closed by peer"), OSError(5, "I/O"), MemoryError()]
)
def test_what_may_pass_is_tried_again(tmp_path: Path, error: Exception) -> None:
    assert _of_program(error, tmp_path / "rank-0.traceback") is None


def test_the_same_error_of_all_workers_twice_is_the_end(tmp_path: Path) -> None:
    errors: list[str] = []

    def leave(*lines: str) -> bool:
        for file in tmp_path.glob("rank-*.traceback"):
            file.unlink()
        for rank, line in enumerate(lines):
            (tmp_path / f"rank-{rank}.traceback").write_text(f"Traceback ...\n  at {time.time()}\n{line}\n")
        return _is_same_error(tmp_path, 2, errors)

    shapes = "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"
    assert not leave("RuntimeError: Connection closed by peer [::1]:4711")  # the other was killed
    assert not leave("RuntimeError: Connection closed by peer [::1]:4711")
    assert not leave(shapes, shapes)
    assert leave(shapes, shapes)


def test_ray_can_pickle_what_a_worker_runs() -> None:
    """By value, as Ray does with a function of the program that was started, `__main__`."""
    script = (
        "import runpy, sys; from ray import cloudpickle;"
        "sys.modules['__main__'].__dict__.update(runpy.run_module('tasks.job', run_name='__main__x'));"
        "job = sys.modules['__main__']; job._worker.__module__ = '__main__'; cloudpickle.dumps(job._worker)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_a_damaged_specification_is_told_and_not_computed(tmp_path: Path, damage: str) -> None:
    """Another digit of a rate would be another training."""
    durable.write_record(tmp_path / SPEC, {"place": "job", "function": "json:dumps", "rate": 0.001})
    content = (tmp_path / SPEC).read_bytes()
    if damage == "removed":
        (tmp_path / SPEC).unlink()
    else:
        (tmp_path / SPEC).write_bytes(
            content[:-9] if damage == "cut" else content.replace(b"0.001", b"0.003")
        )
    done = subprocess.run([sys.executable, "-m", "tasks.job", tmp_path], capture_output=True)
    assert done.returncode == 1
    message = durable.read_record(tmp_path / ERROR)
    assert message == {"message": f"{tmp_path / SPEC}: missing or damaged on the disk; run again"}
