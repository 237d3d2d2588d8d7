"""Measure how the code reads: sizes, names, comments, docstrings, types.

`python -m tests.house [FOLDER...]` prints one row per package, or per folder or file given, and the places
that `tests/test_house.py` refuses. The definitions follow what readers stumble over: a name of one vague
word, several assignments in one line, a docstring that opens in the middle of a sentence.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

PACKAGES = ("openba", "tasks", "flows", "benchmarks")
VAGUE = frozenset({"found", "told", "at", "own", "left", "known", "kept", "place", "whole"})
"""Words that say nothing of what a variable holds."""
_OPENERS = """
about above across after against along also although among and as asked at because been before behind
below beneath beside between beyond but by called done down during each even every except for found from
given gone had has have he her here his how however if in inside into is it its itself just kept left like
made meant more most much never no nobody none nor not nothing now of off on once only onto or other our
out outside over put same seen she since so some still such taken than that their then there these they
this those though through till to together told too toward under unless until up upon was were what
whatever when where wherever which whichever while who whoever whom whose why will with within without yet
you
"""
FRAGMENT_OPENERS = frozenset(_OPENERS.split())
"""First words of a docstring that is neither an imperative nor a noun phrase."""


@dataclass
class Place:
    """One line that breaks a rule."""

    path: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


@dataclass
class House:
    """Counts over a set of modules."""

    lines: int = 0
    code_lines: int = 0
    comment_lines: int = 0
    any_uses: int = 0
    tuple_assignments: int = 0
    docstrings: int = 0
    fragments: int = 0
    names: Counter[str] = field(default_factory=Counter)
    functions: list[int] = field(default_factory=list)
    modules: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Count one module."""
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        self.modules.append(text.count("\n"))
        self.lines += text.count("\n")
        self._count_tokens(text)
        for node in ast.walk(tree):
            self._count_node(path, node)

    def _count_tokens(self, text: str) -> None:
        code: set[int] = set()
        comments: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                if not token.string.startswith(("# type:", "# noqa", "# fmt:", "#!")):
                    comments.add(token.start[0])
            elif token.type not in _LAYOUT:
                code.update(range(token.start[0], token.end[0] + 1))
        self.code_lines += len(code)
        self.comment_lines += len(comments)

    def _count_node(self, path: Path, node: ast.AST) -> None:
        if isinstance(node, ast.Name) and node.id == "Any":
            self.any_uses += 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.functions.append((node.end_lineno or node.lineno) - node.lineno + 1)
        if isinstance(node, ast.Assign) and _is_packed(node):
            self.tuple_assignments += 1
            self.places.append(Place(path, node.lineno, "tuple assignment", ast.unparse(node)[:90]))
        for name in _bound(node):
            self.names[name] += 1
            if name in VAGUE:
                self.places.append(Place(path, getattr(node, "lineno", 0), "vague name", name))
        if isinstance(node, _DOCUMENTED) and (documentation := ast.get_docstring(node)):
            self.docstrings += 1
            if is_fragment(documentation):
                self.fragments += 1
                first = documentation.splitlines()[0]
                self.places.append(Place(path, getattr(node, "lineno", 1), "fragment", first[:90]))
        if isinstance(node, _COMPREHENSIONS) and _depth(node) > 2:
            self.places.append(Place(path, node.lineno, "deep comprehension", ast.unparse(node)[:90]))

    def row(self) -> dict[str, float]:
        """Return the figures by name."""
        bound = self.names.total() or 1
        per_thousand = 1000 / max(self.lines, 1)
        return {
            "lines": self.lines,
            "code_lines": self.code_lines,
            "largest_module": max(self.modules, default=0),
            "function_median": median(self.functions) if self.functions else 0,
            "largest_function": max(self.functions, default=0),
            "comment_percent": round(100 * self.comment_lines / max(self.lines, 1), 2),
            "any_per_1000": round(self.any_uses * per_thousand, 2),
            "underscore_percent": round(
                100 * sum(n for name, n in self.names.items() if "_" in name.strip("_")) / bound, 1
            ),
            "vague_percent": round(100 * sum(self.names[name] for name in VAGUE) / bound, 2),
            "tuples_per_1000": round(self.tuple_assignments * per_thousand, 2),
            "fragment_percent": round(100 * self.fragments / max(self.docstrings, 1), 2),
        }


_LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def is_fragment(documentation: str) -> bool:
    """Return whether a docstring opens neither with an imperative nor with a noun phrase."""
    first = documentation.split()[0].strip("`*_.,:;()\"'“”") if documentation.split() else ""
    return first.lower() in FRAGMENT_OPENERS


def measure(paths: list[Path]) -> House:
    """Count all modules below some folders, or some files."""
    house = House()
    for path in paths:
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            house.add(module)
    return house


def _is_packed(node: ast.Assign) -> bool:
    """Return whether an assignment puts several values into several names in one line, swaps aside."""
    target = node.targets[0]
    if not (isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)):
        return False
    left = [ast.unparse(each) for each in target.elts]
    right = [ast.unparse(each) for each in node.value.elts]
    is_swap = sorted(left) == sorted(right)
    is_initialisation = all(name == f"self.{value}" for name, value in zip(left, right, strict=False))
    return not (is_swap or is_initialisation)


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the local names that a node binds: arguments, assignments, loop and `with` targets."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg) and node.arg not in ("self", "cls"):
        yield node.arg


def _depth(node: ast.AST) -> int:
    """Return how deep comprehensions are nested in a comprehension, itself included."""
    inner = max((_depth(child) for child in ast.iter_child_nodes(node)), default=0)
    return inner + isinstance(node, _COMPREHENSIONS)


def main() -> None:
    """Print the table, and every place that breaks a rule."""
    folders = [Path(name) for name in sys.argv[1:]] or [Path(name) for name in PACKAGES]
    rows = {str(folder): measure([folder]) for folder in folders}
    if not sys.argv[1:]:
        rows["openba + tasks + flows"] = measure([Path("openba"), Path("tasks"), Path("flows")])
    else:
        for house in rows.values():
            print(*house.places, sep="\n")
    for name, house in rows.items():
        print(name, *(f"{key}={value:g}" for key, value in house.row().items()))


if __name__ == "__main__":
    main()
