"""Answers read out of what a model wrote: labelled cases as data, real solutions, and properties."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, ConfigError, load
from openba.data.pairs import ANSWER
from openba.errors import UserError
from openba.evaluate.extraction import FORMS, extract, option_letter
from openba.evaluate.run import score_benchmark
from openba.evaluate.sandbox import Check, run_check
from openba.recipes.evaluate import EXTRACTORS, BenchmarkRecipe

CASES = [
    json.loads(line)
    for path in sorted(Path(__file__).parent.glob("extraction_*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]


def read(case: dict) -> str:
    return extract(case["text"], case["form"], case.get("stop", ()), case.get("letters", ""))


def test_the_cases_are_read_right() -> None:
    wrong = [(case["text"], case["right"], read(case)) for case in CASES if read(case) != case["right"]]
    negatives = sum(not case["right"] for case in CASES)
    assert len(CASES) >= 120
    assert negatives >= len(CASES) / 3
    assert len(wrong) <= 0.02 * len(CASES), wrong


def test_every_name_has_a_function() -> None:
    assert set(FORMS) == set(EXTRACTORS)


def test_real_solutions_of_exams_end_in_their_answer(shared: Path) -> None:
    lines = (shared / "data" / "flan_gaokao_zh" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    single = [row for row in map(json.loads, lines) if len("".join(row["answer"])) == 1]
    right = sum(option_letter(row["analysis"], "ABCD") == row["answer"][0] for row in single)
    assert len(single) == 240
    assert right >= 239  # one analysis settles on two letters, its label has one


def test_explanations_that_settle_on_a_letter_settle_on_the_right_one(shared: Path) -> None:
    explained = [
        row
        for path in (shared / "data" / "eval_ceval").glob("*.jsonl")
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if row.get("explanation")
    ]
    read_letters = [(option_letter(row["explanation"]), row["answer"]) for row in explained]
    settled = [(letter, right) for letter, right in read_letters if letter]
    assert len(settled) >= 12
    assert all(letter == right for letter, right in settled)


def test_chains_of_thought_end_in_their_answer(shared: Path) -> None:
    chains = 0
    for path in (shared / "data" / "eval_bbh" / "cot-prompts").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        for chain in re.findall(r"A: Let's think step by step\.(.*?)(?=\n\nQ:|\Z)", text, re.DOTALL):
            chains += 1
            assert extract(chain, "answer") == re.findall(r"the answer is (.*?)\.?\s*$", chain)[-1].strip()
    assert chains == 54


@given(st.text(max_size=80), st.sampled_from("ABCD"))
def test_a_stated_answer_after_any_text_is_read(before: str, letter: str) -> None:
    text = before.replace("\\", "") + f"\n故选{letter}。"
    assert option_letter(text, "ABCD") == letter


@given(st.text(max_size=200), st.sampled_from(EXTRACTORS))
def test_any_text_is_read_without_an_error(text: str, form: str) -> None:
    assert isinstance(extract(text, form), str)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["extract=(a)(b)"], "has 2 groups, not the one that holds the answer"),
        (["extract=abc"], "has 0 groups"),
        (["extract=(a"], "no regular expression"),
        (["attempts=2"], "only metric 'pass_at_k' looks at more than one"),
        (["method=choice", "task.choices=[a, b]"], "scores written text"),
        (["metrics=[rouge_l, rouge_l]"], "stands there twice"),
        (["metrics=[question_exact_match]"], "needs the task's category"),
        (["metrics=[f1]", "positive=oui", "task.choices=[ja, nein]"], "is not one of the choices"),
        (
            ["metrics=[pass_at_k]", "task.check={program: pass, function: f, tests: pass}"],
            "{answer} is missing",
        ),
        (["stop=['']"], "an empty string ends every answer"),
        (["items=0"], "greater than or equal to 1"),
        (["max_new_tokens=0"], "greater than or equal to 1"),
        (["k=[0]"], "greater than or equal to 1"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_when_read(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(CONFIGS / "benchmark" / "bbc-title.yaml", BenchmarkRecipe, overrides)
    assert message in str(error.value)


def test_fenced_programs_and_every_attempt_are_read(shared: Path) -> None:
    try:
        run_check(Check("def solve(): pass", "solve", "candidate()"))
    except UserError as error:
        pytest.skip(str(error))
    recipe = load(
        CONFIGS / "benchmark" / "paper" / "humaneval.yaml", BenchmarkRecipe, ["attempts=2", "k=[1, 2]"]
    )
    lines = (shared / "data" / "code_humaneval" / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    items = []
    assert recipe.task.check is not None
    templates = recipe.task.check.model_dump()
    for problem in map(json.loads, lines[:4]):
        parts = {name: text.format(**problem, answer=ANSWER) for name, text in templates.items()}
        program = problem["prompt"] + problem["canonical_solution"]
        fenced = f"Here is the function:\n\n```python\n{program}```\n\nIt passes all tests."
        items.append(
            {
                "id": problem["task_id"], "category": "", "input": problem["prompt"], "choices": [],
                "references": [json.dumps(parts)],
                "output": fenced, "attempts": [fenced, "I cannot."], "scores": [], "target": program,
                "cut": False, "examples_left_out": 0, "unfinished": False,
            }
        )  # fmt: skip
    result = score_benchmark(recipe, items, 0)
    assert result["scores"]["pass_at_1"] == 50
    assert result["scores"]["pass_at_2"] == 100
    assert [item["verdict"] for item in items] == [0.5] * 4
