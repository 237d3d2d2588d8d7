"""Metrics of a user's own file, whose text is part of the benchmark's recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import isfinite
from types import ModuleType

from openba.errors import UserError
from openba.evaluate.answers import Answers

UserMetric = Callable[[Answers], Iterable[float]]


def compute_user_metric(metric: str, source: str, answers: Answers) -> list[float]:
    """Return the value of each item, 0 to 1.

    Args:
        metric: `module:function`.
        source: text of the module.
        answers: of one benchmark.

    Raises:
        UserError: the module has no such function, or it fails or returns something else.
    """
    try:
        item_values = [float(value) for value in _load_function(metric, source)(answers)]
    except Exception as error:  # any that a user's function raises
        message = " ".join(str(error).split())
        raise UserError(f"metric {metric}: {type(error).__name__}: {message}") from error
    item_count = len(answers.references)
    if len(item_values) != item_count:
        raise UserError(f"metric {metric}: returned {len(item_values)} values for {item_count} items")
    for value in item_values:
        if not (isfinite(value) and 0 <= value <= 1):
            raise UserError(f"metric {metric}: returned {value}; give each item a number from 0 to 1")
    return item_values


# Cached: scores of groups call the metric once for each of them.
@lru_cache
def _load_function(metric: str, source: str) -> UserMetric:
    module_name, _, function_name = metric.partition(":")
    module = ModuleType(module_name)
    exec(compile(source, f"{module_name}.py", "exec"), module.__dict__)  # noqa: S102 - the user's own code
    function: UserMetric = getattr(module, function_name)
    return function
