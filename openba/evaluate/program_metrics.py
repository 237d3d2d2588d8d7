"""Scores of Python programs and calls: valid syntax, the right call, passed tests."""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from math import comb

from openba.data.pairs import ANSWER
from openba.evaluate.answers import Answers, Scores, mean_score
from openba.evaluate.sandbox import Check, run_check


def python_syntax(answers: Answers) -> list[float]:
    """Return 1 where the answer is a Python program that is not empty; it is parsed, never run."""
    return [float(_is_program(text)) for text in answers.predictions]


def call_arguments(answers: Answers) -> list[float]:
    """Return 1 where the answer calls the right tool with the right arguments; quotes and spaces are free.

    Nothing is run. An answer equal to the reference is right even where that is no Python, as one of MOSS's
    calls is not.
    """
    return [
        float(any(_is_same_call(prediction, reference) for reference in references))
        for prediction, references in zip(answers.predictions, answers.references, strict=True)
    ]


def pass_at_k(answers: Answers) -> tuple[Scores, list[float]]:
    """Share of problems solved by one of k attempts, unbiased (Chen et al. 2021), for each k.

    Every attempt runs in the sandbox, once.

    Returns:
        Scores, of which `pass_at_k_outcomes` counts the outcomes of attempts; and for the first k the
        estimate of each problem, 0 to 1.

    Raises:
        UserError: the machine provides no sandbox.
    """
    # A benchmark with one attempt stores none beside the output.
    attempts = answers.attempts or [[text] for text in answers.predictions]
    outcome_counts: Counter[str] = Counter()
    attempt_counts: list[int] = []
    passed_counts: list[int] = []
    for texts, (reference,) in zip(attempts, answers.references, strict=True):
        outcomes = [run_check(make_check(reference, text)).outcome for text in texts]
        attempt_counts.append(len(outcomes))
        passed_counts.append(outcomes.count("passed"))
        outcome_counts.update(outcomes)
    scores: Scores = {}
    estimates_by_k: dict[int, list[float]] = {}
    for k in answers.k:
        estimates_by_k[k] = [
            estimate_pass_at_k(attempt_count, passed_count, k)
            for attempt_count, passed_count in zip(attempt_counts, passed_counts, strict=True)
        ]
        scores |= mean_score(f"pass_at_{k}", estimates_by_k[k])
    scores["pass_at_k_outcomes"] = ", ".join(
        f"{outcome} {count}" for outcome, count in sorted(outcome_counts.items())
    )
    return scores, estimates_by_k[answers.k[0]]


def make_check(reference: str, answer: str) -> Check:
    """Return the check that a task's reference describes, with the answer in its program."""
    fields = json.loads(reference)
    return Check(fields["program"].replace(ANSWER, answer), fields["function"], fields["tests"])


def estimate_pass_at_k(attempt_count: int, passed_count: int, k: int) -> float:
    """Probability that k attempts drawn without replacement from these contain one that passed."""
    return 1 - comb(attempt_count - passed_count, k) / comb(attempt_count, k)


def _is_same_call(prediction: str, reference: str) -> bool:
    predicted_call = _normalised_call(prediction)
    is_same_text = prediction.strip() == reference.strip()
    return is_same_text or (predicted_call is not None and predicted_call == _normalised_call(reference))


def _normalised_call(text: str) -> tuple[str, ...] | None:
    """Return a call's tool and arguments with keywords in alphabetical order; None if the text is no call."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(node, ast.Call):
        return None
    # Order and quotes of keyword arguments are free; `ast.dump` normalises the values.
    keywords = sorted(f"{keyword.arg}={ast.dump(keyword.value)}" for keyword in node.keywords)
    return (ast.dump(node.func), *map(ast.dump, node.args), *keywords)


def _is_program(text: str) -> bool:
    # Python accepts an empty program; an empty answer is none.
    if not text.strip():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape sequence is still a program
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: deep nesting
        return False
    return True
