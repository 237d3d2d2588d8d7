"""Metrics of a user's own file, whose text came with the benchmark's recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isfinite
from types import ModuleType
from typing import Any

from openba.errors import UserError
from openba.evaluate.answers import Answers


def own_values(metric: str, source: str, answers: Answers) -> list[float]:
    """Return what the function gives each item, 0 to 1.

    Args:
        metric: `module:function`.
        source: text of the module.
        answers: of one benchmark.

    Raises:
        UserError: the module has no such function, or it fails or returns something else.
    """
    try:
        values = [float(value) for value in _function(metric, source)(answers)]
    except Exception as error:  # whatever a user's function raises; the line names it
        raise UserError(f"metric {metric}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if len(values) != len(answers.references):
        raise UserError(f"metric {metric}: returned {len(values)} values for {len(answers.references)} items")
    if wrong := [value for value in values if not (isfinite(value) and 0 <= value <= 1)]:
        raise UserError(f"metric {metric}: returned {wrong[0]}; give each item a number from 0 to 1")
    return values


@lru_cache
def _function(metric: str, source: str) -> Callable[[Answers], Any]:
    module_name, _, function_name = metric.partition(":")
    module = ModuleType(module_name)
    exec(compile(source, f"{module_name}.py", "exec"), module.__dict__)  # noqa: S102 - the user's own code
    function: Callable[[Answers], Any] = getattr(module, function_name)
    return function
