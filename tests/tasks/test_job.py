"""A job's patience with worker groups that die, and when it says that it began."""

import json
import subprocess
import sys
import time
from pathlib import Path

from openba.train.checkpoint import MARKER
from tasks.job import PROCESS, SPEC, Patience


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
    (tmp_path / SPEC).write_text(json.dumps({"place": "job", "function": "json:no_such_function"}))
    before = time.time()
    assert subprocess.run([sys.executable, "-m", "tasks.job", tmp_path], capture_output=True).returncode
    began = json.loads((tmp_path / PROCESS).read_text())["began"]
    assert before - 0.05 < began < time.time()  # the kernel counts hundredths
