"""The house rules that a tool can check: size budgets, and nothing that must not be in the tree."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGES = ("openba", "tasks", "flows", "benchmarks")
MODULE_LINES, FUNCTION_LINES, FLOWS_LINES = 500, 80, 1200


def modules(root: Path) -> list[Path]:
    return [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def test_modules_and_functions_keep_their_size(root: Path) -> None:
    too_long = []
    for path in modules(root):
        text = path.read_text()
        if text.count("\n") > MODULE_LINES:
            too_long.append(f"{path.relative_to(root)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef)
                and (size := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
            ):
                too_long.append(f"{path.relative_to(root)}:{node.lineno} {node.name}: {size} lines")
    assert too_long == []


def test_flows_stay_small(root: Path) -> None:
    assert sum(path.read_text().count("\n") for path in (root / "flows").glob("*.py")) <= FLOWS_LINES


def test_every_module_says_what_it_owns(root: Path) -> None:
    assert [str(p) for p in modules(root) if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_imports_go_one_way(root: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
