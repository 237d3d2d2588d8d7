"""Baselines on the sample packages' real records: each learns, and none without the right answers."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow.parquet as pq
import pytest

from openba.artifacts import Store, materialize
from openba.data.entities import parse_entities
from openba.evaluate.baselines import MOST_FREQUENT, question_of
from openba.evaluate.classical import (
    Examples,
    logistic_regression,
    most_frequent,
    tagged_entities,
    word_by_word,
)
from openba.evaluate.metrics import score
from openba.graph import BASELINES, Pipeline, find_pipeline
from openba.recipes.data import TaskStep

GRAPH = Pipeline(find_pipeline("tiny"), strict=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("baselines")
    return Store(root / "store", root / "work")


def pairs(store: Store, name: str, part: str) -> Examples:
    """A task's pairs; questions without the prompt's words."""
    step = GRAPH.step(f"task-{name}")
    materialize(step, store)
    assert isinstance(step.recipe, TaskStep)
    rows = pq.read_table(store.path(step) / f"{part}.parquet").to_pylist()
    questions = [question_of(row["input"], step.recipe.task) for row in rows]
    return Examples(questions, [row["target"] for row in rows])


def exact(answers: list[str], right: Any) -> float:
    return sum(given == wanted for given, wanted in zip(answers, right, strict=True)) / len(answers)


def test_a_question_is_the_prompt_without_the_templates_words(store: Store) -> None:
    texts = pairs(store, "bbc-topic", "heldout").questions
    assert not [text for text in texts if "business, entertainment" in text or "Article:" in text]
    assert all(100 < len(text) <= 240 for text in texts)
    assert pairs(store, "translate-zh-en", "heldout").questions[:1] != []
    assert not [text for text in pairs(store, "ner", "heldout").questions if "organization" in text]


def test_logistic_regression_learns_topics_and_nothing_from_answers_in_a_random_order(store: Store) -> None:
    train, heldout = pairs(store, "bbc-topic", "train"), pairs(store, "bbc-topic", "heldout")
    learnt = exact(logistic_regression(train, heldout.questions), heldout.answers)
    shuffled = random.Random(1).sample(list(train.answers), len(train.answers))
    control = exact(
        logistic_regression(Examples(train.questions, shuffled), heldout.questions), heldout.answers
    )
    commonest = Counter(train.answers).most_common(1)[0][0]
    assert most_frequent(train, heldout.questions) == [commonest] * len(heldout.questions)
    assert learnt > 0.9
    assert control < 0.4


def test_the_tagger_finds_entities_that_it_has_not_seen(store: Store) -> None:
    train, heldout = pairs(store, "ner", "train"), pairs(store, "ner", "heldout")
    part = Examples(train.questions[:1500], train.answers[:1500])
    answers = tagged_entities(part, heldout.questions[:100])
    assert score(["entity_f1"], answers, heldout.answers[:100], "zh")["entity_f1"] > 40  # type: ignore[operator]
    seen = {entity for answer in part.answers for entity, _ in parse_entities(answer)}
    new = [set(parse_entities(a)) for a in answers]
    right = [set(parse_entities(a)) for a in heldout.answers[:100]]
    assert any(entity not in seen for n, r in zip(new, right, strict=True) for entity, _ in n & r)
    assert tagged_entities(part, [""]) == [""]


def test_words_are_translated_by_what_stands_beside_them_most_often() -> None:
    questions = ["red car", "red house", "blue car", "car"]
    examples = Examples(questions, ["voiture rouge", "maison rouge", "voiture bleue", "voiture"])
    assert word_by_word("en", examples, ["blue house", "red bicycle"]) == ["bleue maison", "rouge bicycle"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baselines", "baselines-chat", "baselines-tool"])
def test_every_benchmark_with_training_records_has_its_baselines(store: Store, name: str) -> None:
    step = GRAPH.step(name)
    assert step.kind is BASELINES
    for needed in step.inputs.values():
        materialize(needed, store)
    measured = materialize(step, store)["facts"]["benchmarks"]
    assert measured.keys() == step.recipe.benchmarks.keys()  # type: ignore[attr-defined]
    for benchmark, found in measured.items():
        is_trained = bool(step.recipe.trained[benchmark])  # type: ignore[attr-defined]
        assert (found["trained_on"] > 0) == is_trained
        if "perplexity" in benchmark or not is_trained:
            assert found["baselines"] == {}
            continue
        assert len(found["baselines"]) >= 2
        metric = step.recipe.benchmarks[benchmark].metrics[0]  # type: ignore[attr-defined]
        best = max(
            (scores[metric] for key, scores in found["baselines"].items() if key != MOST_FREQUENT), default=0
        )
        assert best > found["chance"].get(metric, 0)
        assert best >= found["baselines"][MOST_FREQUENT][metric]


def test_a_benchmark_is_compared_with_what_its_model_was_trained_on() -> None:
    trained = GRAPH.step("baselines").recipe.trained  # type: ignore[attr-defined]
    assert trained["bbc-title"] == ("few-titles",)
    assert trained["translate-en-zh"] == ("few-translations",)
    assert trained["translate-zh-en"] == ()  # tiny is not trained on it
    assert GRAPH.step("baselines-ner").recipe.trained == {"ner": ("ner",)}  # type: ignore[attr-defined]
    assert {model.name: model.baselines and model.baselines.name for model in GRAPH.models} == {
        "stage1": "baselines",
        "stage2": "baselines",
        "stage3": "baselines",
        "chat": "baselines-chat",
        "code": "baselines-code",
        "instructgen": "baselines-instructgen",
        "ner": "baselines-ner",
        "tool": "baselines-tool",
    }
