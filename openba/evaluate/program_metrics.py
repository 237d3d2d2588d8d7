"""Scores of Python programs and calls: whether they parse, are the right call, or pass their tests."""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from math import comb

from openba.data.pairs import ANSWER
from openba.evaluate.answers import Answers, Scores, mean
from openba.evaluate.sandbox import Check, run_check


def python_syntax(answers: Answers) -> list[float]:
    """1 where the answer is a Python program that is not empty; it is parsed, never run."""
    return [float(_parses(text)) for text in answers.predictions]


def call_arguments(answers: Answers) -> list[float]:
    """1 where the answer calls the right tool with the right arguments, whatever its quotes and spaces.

    Nothing is run. The right text is right also where it is no Python, as one of MOSS's calls is not.
    """
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [float(any(_same_call(text, right) for right in references)) for text, references in pairs]


def pass_at_k(answers: Answers) -> tuple[Scores, list[float]]:
    """Share of problems solved by one of k attempts, unbiased (Chen et al. 2021), for each k.

    Every attempt runs in the sandbox, once.

    Returns:
        Scores, of which `pass_at_k_outcomes` counts how the attempts ended; and for the first k the estimate
        of each problem, 0 to 1.

    Raises:
        UserError: the machine has no sandbox to offer.
    """
    attempts = answers.attempts or [[text] for text in answers.predictions]
    outcomes: Counter[str] = Counter()
    solved = []
    for texts, (reference,) in zip(attempts, answers.references, strict=True):
        ends = [run_check(check_of(reference, text)).outcome for text in texts]
        solved.append((len(ends), ends.count("passed")))
        outcomes.update(ends)
    values = {k: [estimate(n, right, k) for n, right in solved] for k in answers.k}
    scores: Scores = {}
    for k, of_problems in values.items():
        scores |= mean(f"pass_at_{k}", of_problems)
    scores["pass_at_k_outcomes"] = ", ".join(f"{end} {n}" for end, n in sorted(outcomes.items()))
    return scores, values[answers.k[0]]


def check_of(reference: str, answer: str) -> Check:
    """Return the check that a task's reference describes, with the answer in its program."""
    parts = json.loads(reference)
    return Check(parts["program"].replace(ANSWER, answer), parts["function"], parts["tests"])


def estimate(attempts: int, right: int, k: int) -> float:
    """Chance that k attempts drawn from these hold a right one."""
    return 1 - comb(attempts - right, k) / comb(attempts, k)


def _same_call(text: str, right: str) -> bool:
    given = _call(text)
    return text.strip() == right.strip() or (given is not None and given == _call(right))


def _call(text: str) -> tuple[str, ...] | None:
    """A call's tool and arguments in one form; None if the text is no call."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(node, ast.Call):
        return None
    named = sorted(f"{keyword.arg}={ast.dump(keyword.value)}" for keyword in node.keywords)
    return (ast.dump(node.func), *map(ast.dump, node.args), *named)


def _parses(text: str) -> bool:
    if not text.strip():  # Python accepts an empty program; an empty answer is none
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a doubtful escape is still a program
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: absurd nesting
        return False
    return True
