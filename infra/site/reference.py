"""A hook of mkdocs that adds `reference.md`: every key of a pipeline's YAML, from the recipe types.

Run by itself it prints the page.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from openba.recipes.evaluate import SuiteRecipe
from openba.recipes.pipeline import ExpertConfig, PipelineConfig

ROOTS = (PipelineConfig, ExpertConfig, SuiteRecipe)
INTRODUCTION = """# Configuration reference

Every key that a file below `configs/` may have, made from the types in `openba/recipes`. A key without a
default is required. How files refer to each other: [configuration.md](configuration.md).
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference.md", content=page()))
    return files


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join([INTRODUCTION, *(section(model) for model in models())])


def models() -> list[type[BaseModel]]:
    """Return all recipe types that the roots reach, each once, outermost first."""
    reached: dict[type[BaseModel], None] = dict.fromkeys(ROOTS)
    waiting = list(ROOTS)
    while waiting:
        for field in waiting.pop(0).model_fields.values():
            for model in models_in(field.annotation):
                if model not in reached:
                    reached[model] = None
                    waiting.append(model)
    return list(reached)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the recipe types that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def section(model: type[BaseModel]) -> str:
    """Return a heading, the type's description and a table of its keys."""
    descriptions = field_descriptions(model)
    lines = [f"## {model.__name__}", "", inspect.cleandoc(model.__doc__ or ""), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else cell(default_text(field))
        lines.append(
            f"| `{name}` | {type_text(field.annotation)} | {default} | {descriptions.get(name, '')} |"
        )
    return "\n".join([*lines, ""])


def field_descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return field -> the string below it in the source, of the type and those it extends."""
    descriptions: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.startswith("openba.")):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for statement, following in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                text = ast.literal_eval(following.value)
                descriptions[statement.target.id] = " ".join(text.split()).replace("|", "\\|")  # type: ignore[union-attr]
    return descriptions


def default_text(field: Any) -> str:
    """Return a default as one writes it in YAML."""
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return "its own defaults"
    return "null" if default is None else str(default)


def type_text(annotation: Any) -> str:
    """Return a type in words; recipe types link to their section."""
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if arguments := get_args(annotation):
        origin = getattr(annotation, "__origin__", None)
        if all(isinstance(argument, str) for argument in arguments):
            return cell(" \\| ".join(arguments))
        if origin is dict:
            return f"mapping of {type_text(arguments[1])}"
        if origin in (list, tuple):
            return f"list of {type_text(arguments[0])}"
        if origin is not None and origin.__class__.__name__ == "_AnnotatedAlias":
            return type_text(arguments[0])
        return " or ".join(
            dict.fromkeys(
                type_text(argument)
                for argument in arguments
                if isinstance(argument, type) or get_args(argument)
            )
        )
    return cell(getattr(annotation, "__name__", str(annotation)))


def cell(text: str) -> str:
    """Return text as code of a table's cell."""
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    print(page())
