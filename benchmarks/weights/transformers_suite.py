"""transformers' own test mixins on our classes and on T5's.

`python -m benchmarks.weights.transformers_suite CHECKOUT [--only EXPRESSION]`

`CHECKOUT` is a checkout of the installed version of transformers with its `tests` folder. Its tests need
`parameterized` beside this package's dependencies. The share is of the tests that T5 passes here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figure import ROOT, Figure
from benchmarks.weights.fixture import write_fixture
from openba.errors import UserError
from openba.tokenizer.files import write_tokenizer_files

CASES = Path(__file__).with_name("transformers_cases.py")
PLUGIN = "benchmarks.weights.outcomes_plugin"
TARGET = 95.0
PAIRS = {"OpenBAModelTest": "T5ModelTest", "OpenBATokenizerTest": "T5TokenizerTest"}
Outcomes = dict[str, dict[str, str]]
"""Class -> test -> "passed", "skipped: reason" or "failed: reason"."""


def run_mixins(checkout: Path, scratch: Path, only: str | None = None) -> Outcomes:
    """Run the mixins on all classes in a process of its own.

    Raises:
        UserError: the folder is no checkout of transformers, or the tests cannot be loaded.
    """
    if not (checkout / "tests" / "test_modeling_common.py").is_file():
        raise UserError(f"{checkout}: no tests/test_modeling_common.py; give a checkout of transformers")
    tokenizer = write_fixture(scratch / "fixture")
    (scratch / "openba").mkdir()
    write_tokenizer_files(scratch / "openba", tokenizer, model_max_length=1024)
    # The same pieces for both, so that a difference is the class's.
    (scratch / "t5").mkdir()
    shutil.copy(tokenizer.path, scratch / "t5" / "spiece.model")
    (scratch / "t5" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (scratch / "t5" / "config.json").write_text('{"model_type": "t5"}')
    report = scratch / "outcomes.json"
    settings = scratch / "pytest.ini"
    # Settings of their own: ours are for our tests, with their plugins and their workers.
    settings.write_text("[pytest]\n")
    folders = [str(checkout.resolve()), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(folders),
        "OPENBA_SUITE_TOKENIZERS": str(scratch),
        "OPENBA_SUITE_OUTCOMES": str(report),
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-c", str(settings), "--import-mode=importlib"),
        *("--timeout=300", "-p", "no:cacheprovider", "-p", PLUGIN, str(CASES)),
        *(["-k", only] if only else []),
    ]
    # A process of its own: in this one `tests` is this project's package.
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    if not report.exists() or done.returncode not in (0, 1):
        raise UserError(f"{checkout}: its tests were not run: {_error_lines(done.stdout)}")
    return json.loads(report.read_text(encoding="utf-8"))


def _error_lines(output: str) -> str:
    """Return pytest's lines that say what an error is, in one line."""
    lines = [line[1:].strip() for line in output.splitlines() if line.startswith("E ")]
    return "; ".join(lines[:3]) or output[-300:].replace("\n", " ")


def figures(outcomes: Outcomes) -> Iterator[Figure]:
    """Yield for each pair of classes the share that OpenBA's passes of what T5's passes."""
    for ours_name, theirs_name in PAIRS.items():
        ours = outcomes.get(ours_name, {})
        theirs = outcomes.get(theirs_name, {})
        common = [name for name, outcome in theirs.items() if outcome == "passed" and name in ours]
        if not common:
            continue
        passed_count = sum(ours[name] == "passed" for name in common)
        share = 100 * passed_count / len(common)
        comparison = f"{passed_count} of the {len(common)} that {theirs_name} passes"
        figure_name = f"weights/transformers_{ours_name.removeprefix('OpenBA')}"
        yield Figure(figure_name, share, "%", TARGET, "higher", comparison, share / 100)


def main(
    checkout: Annotated[Path, typer.Argument(help="Checkout of the installed version of transformers.")],
    only: Annotated[str | None, typer.Option(help="Expression of pytest's -k.")] = None,
) -> None:
    """Print what OpenBA does not pass and T5 does, counts and shares; exit code 1 below the target."""
    with tempfile.TemporaryDirectory(prefix="openba-suite-") as scratch_folder:
        try:
            outcomes = run_mixins(checkout, Path(scratch_folder), only)
        except UserError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(2) from None
    for ours_name, theirs_name in PAIRS.items():
        theirs = outcomes.get(theirs_name, {})
        for name, outcome in sorted(outcomes.get(ours_name, {}).items()):
            if outcome != "passed" and theirs.get(name) == "passed":
                print(f"{ours_name}.{name}  {outcome}")
    for class_name, results in outcomes.items():
        states = [outcome.partition(":")[0] for outcome in results.values()]
        counts = {state: states.count(state) for state in ("passed", "failed", "skipped")}
        print(class_name, *(f"{state} {count}" for state, count in counts.items()))
    measured = list(figures(outcomes))
    for figure in measured:
        print(figure.line(), figure.peer)
    raise typer.Exit(1 if any(figure.ok is False for figure in measured) else 0)


if __name__ == "__main__":
    typer.run(main)
