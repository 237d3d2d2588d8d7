"""Read text of the running Python: standard library source, documented functions, language reference.

Source is parsed, never imported.
"""

from __future__ import annotations

import ast
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from openba.data.samples.locate import Record

Function = ast.FunctionDef | ast.AsyncFunctionDef

_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data"}
_GENERATED = ("_sysconfigdata", "config-")  # how this interpreter was built: paths and flags
_MAX_CODE_LINES = 12
_MAX_DOCSTRING_CHARACTERS = 200


def stdlib_code() -> Iterator[Record]:
    """Yield the modules of the standard library without tests; id is the path below the library."""
    for name, source in _modules():
        if source.strip():
            yield name, source, {}


def stdlib_functions() -> Iterator[Record]:
    """Yield the source of functions and methods with a docstring; id `path:line`.

    extra: `{"name", "qualified_name", "module", "signature", "docstring", "code"}`: the docstring's first
    paragraph (at most 200 characters) and the code without its docstring (at most 12 lines).
    """
    for path, source in _modules():
        lines = source.splitlines(keepends=True)
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name, node in _functions(ast.parse(source), module):
            summary = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            has_summary = 0 < len(summary) <= _MAX_DOCSTRING_CHARACTERS
            code = _without_docstring(node, lines) if has_summary else None
            if code and code.count("\n") < _MAX_CODE_LINES:
                text = _dedent(lines[node.lineno - 1 : node.end_lineno], node)
                yield (
                    f"{path}:{node.lineno}",
                    text,
                    {
                        "name": node.name,
                        "qualified_name": name,
                        "module": module.partition(".")[0],
                        "signature": _signature(node),
                        "docstring": summary,
                        "code": code,
                    },
                )


def language_reference() -> Iterator[Record]:
    """Yield the topics of Python's language reference in English, as `help()` shows them."""
    from pydoc_data.topics import topics  # 0.7 MB that only this reader needs

    for name, text in sorted(topics.items()):
        yield name, text.strip(), {}


def _modules() -> Iterator[tuple[str, str]]:
    """Yield relative path and source of every module."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        is_generated = any(part.startswith(_GENERATED) for part in parts)
        if not _SKIPPED_FOLDERS.intersection(parts) and not is_generated:
            with tokenize.open(path) as file:  # respects the file's coding line
                yield "/".join(parts), file.read()


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    """Yield the functions in and below a node with their qualified names, in order of the source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}.{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from _functions(child, name)
        else:
            yield from _functions(child, prefix)


def _without_docstring(node: Function, lines: list[str]) -> str | None:
    """Return the dedented code, None if there is only a docstring or it shares a line with code."""
    docstring, *rest = node.body
    if not rest or docstring.lineno == node.lineno or rest[0].lineno == docstring.end_lineno:
        return None
    body = lines[docstring.end_lineno : node.end_lineno]
    while not body[0].strip():
        del body[0]
    return _dedent(lines[node.lineno - 1 : docstring.lineno - 1] + body, node)


def _dedent(lines: list[str], node: Function) -> str:
    # Not textwrap.dedent: the lines of a string may be indented less than the function.
    return "".join(line.removeprefix(" " * node.col_offset) for line in lines).rstrip()


def _signature(node: Function) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{prefix} {node.name}({ast.unparse(node.args)}){returns}:"
