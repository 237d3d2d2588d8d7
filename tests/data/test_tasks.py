"""Tasks on the real records of the sample packages, and users' own formats."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.artifacts import Build
from openba.config import CONFIGS, Config, load
from openba.data import labelled, sources
from openba.data.conversations import history
from openba.data.entities import format_entities, parse_entities
from openba.data.labelled import render
from openba.errors import UserError
from openba.recipes.data import SourceStep, TaskRecipe, TaskStep
from openba.recipes.evaluate import BenchmarkRecipe
from openba.recipes.pipeline import ExpertConfig

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))
BENCHMARKS = sorted(path.stem for path in (CONFIGS / "benchmark").glob("*.yaml"))
EXPERTS = {"chat", "code", "instructgen", "tool", "ner"}
TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.text("[]()\\, a北", max_size=12)


def recipe_of(name: str) -> TaskRecipe:
    return load(CONFIGS / "task" / f"{name}.yaml", TaskRecipe)


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Documents of a source as its step writes them; each source is read once."""
    known: dict[str, Path] = {}

    def get(recipe: TaskRecipe) -> Path:
        key = recipe.source.model_dump_json(exclude={"language"})
        if key not in known:
            folder = tmp_path_factory.mktemp("source")
            with chdir(CONFIGS.parent):  # shipped paths are relative to the repository
                sources.build(Build(folder, SourceStep(name="source", source=recipe.source), {}))
            known[key] = folder
        return known[key]

    return get


@pytest.fixture(scope="session")
def rendered(records):
    """Each shipped task rendered once."""
    known: dict[str, labelled.Rendered] = {}

    def get(name: str) -> labelled.Rendered:
        if name not in known:
            recipe = recipe_of(name)
            known[name] = render(recipe, pq.read_table(records(recipe) / "documents.parquet"), name)
        return known[name]

    return get


def own(rows: list[dict[str, Any]], **fields: Any) -> tuple[TaskRecipe, pa.Table]:
    """A task over records that a user might bring."""
    source = {"adapter": "jsonl", "path": "own.jsonl", "language": "en", "licence": "own"}
    recipe = TaskRecipe.model_validate({"source": source, **fields})
    columns = {
        "id": [str(number) for number in range(len(rows))],
        "text": [row.get("text", "") for row in rows],
        "language": ["en"] * len(rows),
        "source": ["own"] * len(rows),
        "extra": [json.dumps(row, ensure_ascii=False) for row in rows],
    }
    return recipe, pa.table(columns)


def pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["input"].to_pylist(), table["target"].to_pylist(), strict=True))


# The notation of entities


@given(st.lists(st.tuples(TEXT, TEXT), max_size=4))
def test_entities_read_back_as_written(entities):
    assert parse_entities(format_entities(entities)) == entities


def test_entities_have_the_papers_form():
    entities = [("Acme (UK), Ltd.", "company"), ("a[0]", "code (Python)")]
    assert format_entities(entities) == "[Acme (UK), Ltd.](company), [a[0]](code (Python))"
    assert parse_entities("") == []


@pytest.mark.parametrize(
    "text",
    ["Rome", "[Rome]", "[Rome](city", "[Rome](city) and more", "[Rome](city),", "[a](b) [c](d)", "[](x))"],
)
def test_anything_else_is_no_entity_list(text):
    with pytest.raises(ValueError, match="character"):
        parse_entities(text)


# The shipped declarations


@pytest.mark.parametrize("name", TASKS)
def test_shipped_task_renders_its_records(rendered, name):
    result, recipe = rendered(name), recipe_of(name)
    assert result.train.num_rows > 300
    everything = pairs(result.train) + pairs(result.heldout)
    assert all(text.strip() and target.strip() for text, target in everything)
    if recipe.choices:
        assert {target for _, target in everything} == set(recipe.choices)
    if recipe.heldout:
        share = result.heldout.num_rows / (result.train.num_rows / recipe.repeat + result.heldout.num_rows)
        assert 0.06 < share < 0.14


@pytest.mark.parametrize("name", TASKS)
def test_nothing_held_out_is_trained_on(rendered, name):
    result = rendered(name)
    train = {identifier.split("#")[0].split("*")[0] for identifier in result.train["id"].to_pylist()}
    heldout = {identifier.split("#")[0] for identifier in result.heldout["id"].to_pylist()}
    assert train.isdisjoint(heldout)  # all turns of one conversation are on one side
    assert set(pairs(result.train)).isdisjoint(pairs(result.heldout))


def test_tasks_over_the_same_records_hold_out_the_same_ones(rendered):
    for one, other in [
        ("translate-zh-en", "translate-en-zh"),
        ("tool", "code"),
        ("docstring-to-name", "tool"),
    ]:
        heldout = set(rendered(one).heldout["id"].to_pylist())
        train = {identifier.split("*")[0] for identifier in rendered(other).train["id"].to_pylist()}
        assert heldout.isdisjoint(train)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_shipped_benchmark_is_valid(name):
    """It asks what a shipped task holds out; `identity` alone asks what was trained on, as the paper does."""
    benchmark = load(CONFIGS / "benchmark" / f"{name}.yaml", BenchmarkRecipe)
    assert name == "identity" or benchmark.task in [recipe_of(task) for task in TASKS]
    assert (benchmark.method == "choice") == bool(benchmark.task.choices)
    assert benchmark.task.heldout > 0


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_shipped_expert_names_tasks_and_benchmarks(name):
    config = Config.read(CONFIGS / "finetune" / f"{name}.yaml")
    expert = config.validate(ExpertConfig)
    assert expert.register_as == f"openba-{name}"
    trained = [task.source for task in expert.tasks.values()]
    assert all(benchmark.task.source in trained for benchmark in expert.benchmarks.values())


def test_headlines_are_not_in_the_input(rendered):
    for text, title in pairs(rendered("bbc-title").train):
        assert f"\n{title}\n" not in text
        assert not text.partition(" ")[2].startswith(title)


def test_entities_of_peoples_daily_are_in_the_sentence(rendered):
    table = rendered("ner").train
    kinds = set()
    for text, target in pairs(table.slice(0, 500)):
        assert text.startswith(
            "List all the entity in the sentence. Use the specific entity tags: organization, person, place."
        )
        for entity, kind in parse_entities(target):
            assert entity in text
            kinds.add(kind)
    assert kinds == {"organization", "person", "place"}


def test_persons_only_where_the_task_asks_for_persons(rendered):
    entities, persons = (
        dict(zip(table["id"].to_pylist(), table["target"].to_pylist(), strict=True))
        for table in (rendered("ner").heldout, rendered("people-daily-entity").heldout)
    )
    both = entities.keys() & persons.keys()
    assert len(both) > 100
    for identifier in both:
        wanted = [text for text, kind in parse_entities(entities[identifier]) if kind == "person"]
        assert persons[identifier] == "、".join(wanted)


def test_identity_is_trained_on_ten_times_and_never_held_out(rendered):
    result = rendered("chat-identity")
    lines = (CONFIGS / "finetune" / "data" / "identity.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [
        m["content"] for line in lines for m in json.loads(line)["messages"] if m["role"] == "assistant"
    ]
    assert len(lines) == 40
    assert result.heldout.num_rows == 0
    assert result.train.num_rows == 10 * len(answers)
    assert len(set(result.train["id"].to_pylist())) == result.train.num_rows
    assert sum("OpenBA" in answer for answer in answers) > 30


def test_every_template_is_used(rendered):
    openings = {text[:12] for text, _ in pairs(rendered("translate-en-zh").train)}
    assert {"请把下面的英文翻译成中文："[:12]} <= {opening[:12] for opening in openings}
    assert sum(opening.startswith("“") for opening in openings) > 20
    assert sum(opening.startswith("英文：") for opening in openings) > 20


def test_step_writes_the_same_bytes_twice(records, tmp_path):
    recipe = recipe_of("chat-zh")
    written = []
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        step = TaskStep(name="chat-zh", task=recipe)
        facts = labelled.build(Build(tmp_path / attempt, step, {}))
        written.append(
            [(tmp_path / attempt / f"{split}.parquet").read_bytes() for split in ("train", "heldout")]
        )
    assert written[0] == written[1]
    assert facts["records"] == 467
    assert facts["train"] + facts["heldout"] + sum(facts["discarded"].values()) > 467
    assert len(facts["samples"]) == 2


# Conversations


def test_conversation_gives_a_pair_for_each_answer():
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
    ]
    table = [{"messages": messages}]
    templates = [{"input": "Talk. {history}", "target": "{answer}"}]
    result = render(*own(table, conversation=True, templates=templates, heldout=0))
    assert pairs(result.train) == [
        ("Talk. Human: Hello Assistant:", "Hi."),
        ("Talk. Human: Hello Assistant: Hi. Human: Who? Assistant:", "Me."),
    ]
    text, turns = result.train["input"][1].as_py(), result.train["turns"][1].as_py()
    assert text[: turns[0]] + text[turns[1] :] == "Talk. Human: Who? Assistant:"


def test_sharegpt_and_openai_conversations_are_the_same():
    file = SHARED / "chat_sharegpt_zh" / "conversations.jsonl"
    if not file.exists():
        pytest.skip("shared/data/chat_sharegpt_zh is not here")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    roles = {"human": "user", "gpt": "assistant"}
    openai = [
        {"messages": [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]}
        for row in rows
    ]
    fields = {"conversation": True, "templates": [{"input": "{history}", "target": "{answer}"}]}
    one, other = render(*own(rows, **fields)), render(*own(openai, **fields))
    assert one.train == other.train
    assert one.heldout == other.heldout
    assert one.train.num_rows + one.heldout.num_rows > 400


def test_alpaca_records_are_template_fields():
    file = SHARED / "instruct_alpaca_en" / "train.jsonl"
    if not file.exists():
        pytest.skip("shared/data/instruct_alpaca_en is not here")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    result = render(
        *own(rows, templates=[{"input": "{instruction}\n{input}", "target": "{output}"}], heldout=0)
    )
    assert result.train.num_rows + sum(result.discarded.values()) == len(rows)
    without = next(row for row in rows if not row["input"])
    assert (without["instruction"].rstrip(), without["output"].rstrip()) in pairs(result.train)


@pytest.mark.parametrize("text_field", ["instruction", None])
def test_a_record_keeps_the_names_of_its_fields(tmp_path, text_field):
    (tmp_path / "own.jsonl").write_text(
        '{"instruction": "Say a.", "input": null, "output": "a"}\n', encoding="utf-8"
    )
    source = {"adapter": "jsonl", "path": str(tmp_path), "language": "en", "licence": "own"}
    recipe = TaskRecipe.model_validate(
        {
            "source": {**source, "text_field": text_field},
            "templates": [{"input": "{instruction}{input}", "target": "{output}"}],
            "heldout": 0,
        }
    )
    table = pa.Table.from_batches(sources.read("own", recipe.source))
    assert pairs(render(recipe, table).train) == [("Say a.", "a")]


def test_history_is_the_papers_template():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}]
    assert history(messages) == ("Be brief. Human: 你好 Assistant:", [10])


# What is discarded, and mistakes


def test_require_discards_and_counts():
    rows = [{"q": str(number), "a": "call()" if number % 2 else "no"} for number in range(100)]
    templates = [{"input": "{q}", "target": "{a}"}]
    result = render(*own(rows, templates=templates, require=r"\(\)$"))
    assert result.discarded == {"require": 50}
    assert set(result.train["target"].to_pylist()) == {"call()"}


def test_a_question_that_is_held_out_is_not_trained_on():
    rows = [{"q": f"question {number % 20}", "a": str(number)} for number in range(400)]
    result = render(
        *own(rows, templates=[{"input": "{q}", "target": "{a}"}, {"input": "Q: {q}", "target": "{a}"}])
    )
    asked = {text.removeprefix("Q: ") for text in result.heldout["input"].to_pylist()}
    trained = {text.removeprefix("Q: ") for text in result.train["input"].to_pylist()}
    assert asked
    assert asked.isdisjoint(trained)
    total = result.train.num_rows + result.heldout.num_rows + result.discarded["asked_in_heldout"]
    assert total == len(rows)


def test_of_repeated_questions_the_first_stays_in_each_part():
    rows = [{"q": f"question {number % 20}", "a": str(number)} for number in range(400)]
    templates = [{"input": "{q}", "target": "{a}"}, {"input": "Q: {q}", "target": "{a}"}]
    kept, first = (
        render(*own(rows, templates=templates, repeated_questions=choice, heldout=0.02))
        for choice in ("keep", "first")
    )
    for part in ("train", "heldout"):
        asked = [text.removeprefix("Q: ") for text in getattr(first, part)["input"].to_pylist()]
        assert len(asked) == len(set(asked))
        assert set(asked) == {text.removeprefix("Q: ") for text in getattr(kept, part)["input"].to_pylist()}
    answers = dict(pairs(first.train))
    assert all(int(answer) < 60 for answer in answers.values())  # rows 20 to 59 where held out
    total = first.train.num_rows + first.heldout.num_rows + sum(first.discarded.values())
    assert total == len(rows)
    assert first.discarded["repeated_question"] > 0


@pytest.mark.parametrize(
    ("unit", "text", "words", "position", "right"),
    [
        ("word", "He said he knew that he lied.", "he", 2, "He said *he* knew that he lied."),
        ("word", "He said he knew that he lied.", "he", 5, "He said he knew that *he* lied."),
        ("word", "The  heir said: he\nwas it.", "he", 3, "The  heir said: *he*\nwas it."),
        ("word", "Then, as he came, he sat.", "he", 9, "Then, as he came, *he* sat."),  # beyond the end
        ("character", "他说他知道他撒了谎。", "他", 2, "他说*他*知道他撒了谎。"),
        ("character", "他说他知道他撒了谎。", "他", 5, "他说他知道*他*撒了谎。"),
        ("character", "我们说他们知道", "他们", 4, "我们说*他们*知道"),
    ],
)
def test_the_words_at_the_position_are_marked(unit, text, words, position, right):
    rows = [{"text": text, "target": {"span": words, "begin": position}}]
    marked = {"text": "text", "words": "{target[span]}", "position": "{target[begin]}", "unit": unit}
    recipe, table = own(
        rows, marked={"sentence": marked}, templates=[{"input": "{sentence}", "target": "x"}], heldout=0
    )
    assert pairs(render(recipe, table).train) == [(right, "x")]


def test_contamination_looks_for_a_marked_text_without_marks():
    rows = [{"text": "He said he knew.", "span": "he", "begin": 2}]
    marked = {"text": "text", "words": "{span}", "position": "{begin}", "unit": "word"}
    recipe, table = own(
        rows,
        marked={"sentence": marked},
        templates=[{"input": "{sentence} {span}?", "target": "x"}],
        heldout=1,
    )
    (asked,) = render(recipe, table).asked()
    assert asked["question"].to_pylist() == [["He said he knew.", "he"]]


def test_limit_and_repeat():
    rows = [{"q": str(number), "a": "yes"} for number in range(500)]
    fields = {"templates": [{"input": "{q}", "target": "{a}"}], "limit": 200}
    once, thrice = render(*own(rows, **fields)), render(*own(rows, **fields, repeat=3))
    assert once.train.num_rows + once.heldout.num_rows == 200
    assert 5 < once.heldout.num_rows < 40  # the limit does not follow the split
    assert pairs(thrice.train) == pairs(once.train) * 3
    assert thrice.heldout == once.heldout


MARKED = {"text": "question", "words": "{a}", "position": "0", "unit": "word"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"marked": {"s": MARKED}, "templates": [{"input": "{s}", "target": "{a}"}]},
            r"record 0: question does not hold",
        ),
        (
            {
                "marked": {"s": {**MARKED, "position": "{a}"}},
                "templates": [{"input": "{s}", "target": "{a}"}],
            },
            r"record 0: marked: invalid literal",
        ),
        (
            {"templates": [{"input": "{qestion}", "target": "{a}"}]},
            r"no field 'qestion'; it has a, .*question",
        ),
        ({"templates": [{"input": "{messages[9][content]}", "target": "{a}"}]}, r": template .*record 0"),
        ({"templates": [{"input": "{question", "target": "{a}"}]}, r": template '\{question': record 0"),
        (
            {"templates": [{"input": "{question}", "target": "{a}"}], "choices": ["b"]},
            "'a1'.*not one of the choices b",
        ),
        (
            {"templates": [{"input": "{question}", "target": "{a}"}], "wording": {"a": {"x": "y"}}},
            "wording.a has no word for 'a1'",
        ),
        ({"templates": [{"input": "{a}", "target": "{answer}"}], "conversation": True}, r"needs \{history\}"),
        (
            {"templates": [{"input": "{history}", "target": "{a}"}], "conversation": True},
            "role 'robot' is not one of",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(fields, message):
    rows = [{"question": "q1", "a": "a1", "messages": [{"role": "robot", "content": "beep"}]}]
    with pytest.raises(UserError, match=message) as error:
        render(*own(rows, **fields), "mine")
    assert str(error.value).startswith("mine (own.jsonl): ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"speaker": "a", "text": "b"}]}, r"write turns as messages \[\{role, content\}\]"),
        ({"entities": [["Rome", "city", 3]]}, r"entities must be a list of \[text, type\]"),
        ({"text": "no turns"}, "no messages or conversations"),
    ],
)
def test_records_of_another_shape_are_told(row, message):
    templates = [{"input": "{history}", "target": "{answer}"}]
    with pytest.raises(UserError, match=message):
        render(*own([row], templates=templates, conversation=True))
