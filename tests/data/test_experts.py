"""The experts' data as the paper builds them (section 6), on real samples of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.evaluation.figures import gold_entities
from openba.config import CONFIGS, load
from openba.data.entities import entities_of_spans, entities_of_tags, format_entities, parse_entities
from openba.data.identity import states_identity
from openba.data.instruct import encode_input
from openba.data.labelled import render
from openba.data.pairs import Rendered
from openba.data.sources import read
from openba.evaluate.metrics import score
from openba.recipes.data import TaskRecipe
from openba.tokenizer.tokenizer import Tokenizer

# Task -> its data set below shared/data, or none: a record of the form that its file states.
REAL = {
    "chat-dialogstudio": "chat_dialogstudio_en/dialogues.jsonl",
    "chat-sharegpt": "chat_sharegpt_zh/conversations.jsonl",
    "chat-belle": "instruct_alpaca_zh/train.jsonl",
    "chat-moss": "chat_moss/conversations.jsonl",
    "code-evol": "code_codealpaca/train.jsonl",
    "tool-search": "tool_moss_search/conversations.jsonl",
    "ner-pile": "ner_open_domain/pile_ner_sample.jsonl",
}
FORMS: dict[str, dict[str, Any]] = {
    "instructgen-dolly": {
        "instruction": "Name a fruit",
        "context": "",
        "response": "Apple",
        "category": "qa",
    },
    "instructgen-lima": {"conversations": ["Name a fruit", "Apple"]},
    "instructgen-lima-zh": {"conversations": ["说一种水果", "苹果"]},
    "tool-toolformer": {"instruction": "Complete", "input": "Paris is", "output": 'Retrieval("Paris")'},
}
EXPERT = sorted(path.stem for path in (CONFIGS / "task" / "expert").glob("*.yaml"))


def recipe_of(name: str, *overrides: str, folder: str = "expert/") -> TaskRecipe:
    return load(CONFIGS / "task" / f"{folder}{name}.yaml", TaskRecipe, list(overrides))


def rendered(recipe: TaskRecipe, name: str = "task") -> Rendered:
    return render(recipe, pa.Table.from_batches(read(name, recipe.source)), name)


def pairs(result: Rendered) -> list[dict[str, Any]]:
    return [*result.train.to_pylist(), *result.heldout.to_pylist()]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return f"source={{adapter: jsonl, path: {path}, text_field: null, language: zh, licence: test}}"


def test_every_task_is_tried() -> None:
    assert set(EXPERT) == set(REAL) | set(FORMS)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_form_that_the_file_states_renders(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(name, written(tmp_path / "x.jsonl", [FORMS[name]]), "heldout=0.0")
    train = rendered(recipe).train.to_pylist()
    assert len(train) == (2 if name == "instructgen-lima-zh" else 1)
    if name.startswith("instructgen"):
        template = "请你根据提供的文本生成对应的指令: 苹果" if name.endswith("zh") else (
            "Please generate the instruction according to the text I provide: Apple."
        )  # fmt: skip
        assert {(pair["input"], pair["target"]) for pair in train} == {
            (template, "说一种水果" if name.endswith("zh") else "Name a fruit")
        }


def published_dialog_studio(shared: Path, folder: Path) -> Path:
    """The public sample in the layout of the published files, which it was taken from."""
    rows = records(shared / "data" / REAL["chat-dialogstudio"])
    dialogues = {
        row["id"]: {
            "original dialog id": "",
            "log": [
                {"turn id": i, "user utterance": turn["user"], "system response": turn["system"]}
                for i, turn in enumerate(row["turns"])
            ],
            "prompt": row["prompts"],
        }
        for row in rows
    }
    path = folder / "train.json"
    path.write_text(json.dumps(dialogues, indent=1), encoding="utf-8")
    return path


def test_every_answer_is_a_sample_with_all_before_it(shared: Path, tmp_path: Path) -> None:
    path = published_dialog_studio(shared, tmp_path)
    recipe = recipe_of("chat-dialogstudio", f"source.path={path}", "min_words=0", "drop_identity=false")
    result = rendered(recipe)
    samples = {(pair["input"], pair["target"]) for pair in pairs(result)}
    seen = missing = 0
    for record in records(shared / "data" / REAL["chat-dialogstudio"]):
        turns = [turn[side].strip() for turn in record["turns"] for side in ("user", "system")]
        if not all(turns):  # cleaned; see test_conversations
            continue
        for position in range(1, len(turns), 2):
            before = zip(["Human", "Assistant"] * position, turns[:position], strict=False)
            text = "".join(f"{who}: {said} " for who, said in before)
            found = (f"{text}Assistant:", turns[position]) in samples
            seen += found
            missing += not found
    assert seen > 400
    assert missing <= sum(result.discarded.values())
    assert result.cleaned["empty_turns"] >= 15
    assert set(result.discarded) <= {"empty", "duplicate", "asked_in_heldout", "no_answer"}
    assert not any("Human:  " in pair["input"] for pair in pairs(result))


def test_simple_and_identity_conversations_are_dropped_whole(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / REAL["chat-sharegpt"]
    everything = rendered(
        recipe_of("chat-sharegpt", f"source.path={path}", "drop_identity=false", "min_words=0")
    )
    kept = rendered(recipe_of("chat-sharegpt", f"source.path={path}"))
    assert kept.discarded["identity"] >= 1  # "我是由OpenAI训练的语言模型"
    assert len(pairs(kept)) < len(pairs(everything))
    for pair in pairs(kept):
        assert not states_identity(pair["target"])
    say = [
        [
            {"role": "user", "content": "你是谁"},
            {"role": "assistant", "content": "作为一个AI语言模型，" + "我" * 60},
        ],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        [
            {"role": "user", "content": "ChatGPT 是什么？" * 5},
            {"role": "assistant", "content": "一种产品。" * 9},
        ],
        [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "I am ChatGPT. " + "x " * 60},
        ],
    ]
    source = written(tmp_path / "x.jsonl", [{"messages": messages} for messages in say])
    result = rendered(recipe_of("chat-sharegpt", source, "heldout=0.0"))
    assert result.discarded == {"identity": 2, "too_simple": 1}
    assert [pair["target"] for pair in pairs(result)] == ["一种产品。" * 9]  # a question may name it


def test_the_identity_set_says_the_users_name_ten_times() -> None:
    plain = rendered(recipe_of("chat-identity", folder="")).train.to_pylist()
    named = rendered(recipe_of("chat-identity", "replace={OpenBA: Kite}", folder="")).train.to_pylist()
    assert len(named) == len(plain) >= 400
    assert len(plain) % 10 == 0
    assert not any("OpenBA" in pair["input"] + pair["target"] for pair in named)
    assert (
        sum("Kite" in pair["target"] for pair in named)
        == sum("OpenBA" in pair["target"] for pair in plain)
        > 300
    )


def test_a_long_history_loses_its_oldest_turns(shared: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = published_dialog_studio(shared, tmp_path)
    long = [
        pair
        for pair in pairs(rendered(recipe_of("chat-dialogstudio", f"source.path={path}")))
        if len(pair["turns"]) > 4
    ]
    assert len(long) > 50
    for pair in long[:40]:
        whole = encode_input(tokenizer, pair["input"], pair["turns"], 10**6)
        cut = encode_input(tokenizer, pair["input"], pair["turns"], max(len(whole) // 2, 60))
        text = tokenizer.decode(cut)
        assert text.startswith("Human:")
        assert text.endswith("Assistant:")
        last = pair["input"][pair["turns"][-1] :]
        assert " ".join(text.split()).endswith(" ".join(last.split())[-40:])


def test_code_comes_back_byte_for_byte(shared: Path, mt5_like: Path) -> None:
    path = shared / "data" / REAL["code-evol"]
    found = pairs(rendered(recipe_of("code-evol", f"source.path={path}")))
    exact, plain = Tokenizer(mt5_like, whitespace=True), Tokenizer(mt5_like)
    indented = [pair["target"] for pair in found if "\n    " in pair["target"] or "\t" in pair["target"]]
    assert len(indented) > 300
    for text in indented:
        assert exact.decode(exact.encode(text)) == text
    assert sum(plain.decode(plain.encode(text)) == text for text in indented) == 0


def test_turns_without_a_call_are_discarded(shared: Path) -> None:
    path = shared / "data" / REAL["tool-search"]
    result = rendered(recipe_of("tool-search", f"source.path={path}"))
    commands = [turn["Commands"] for record in records(path) for turn in record["chat"]]
    assert result.discarded["require"] >= sum(command == "None" for command in commands) > 0
    assert len(pairs(result)) > 100
    for pair in pairs(result):
        assert pair["target"].endswith('")')


def test_calls_are_compared_by_tool_and_arguments() -> None:
    right = ['Search("a b")', 'find(name="x", n=1)', 'f("a")', 'f("a")', 'Calculate("3*7")', 'm.f("a")']
    given = ["Search('a b')", 'find(n=1, name="x")', 'f("b")', "f(a", 'Search("3*7")', 'n.f("a")']
    assert score(["call_arguments"], given, right, "en")["call_arguments"] == pytest.approx(
        100 * 2 / 6, abs=1e-3
    )
    assert score(["exact_match"], given, right, "en")["exact_match"] == 0


def test_pile_ner_names_the_types_of_its_own_sentence(shared: Path) -> None:
    path = shared / "data" / REAL["ner-pile"]
    rows = {f"{path.name}:{i}": row for i, row in enumerate(records(path), 1)}
    found = pairs(rendered(recipe_of("ner-pile", f"source.path={path}")))
    assert len(found) > 50
    for pair in found:
        kinds = {kind for _, _, kind in rows[pair["id"]]["ner"]}
        assert f"Use the specific entity tags: {', '.join(sorted(kinds))}. Sentence: " in pair["input"]
        assert {kind for _, kind in parse_entities(pair["target"])} == kinds


def test_all_gold_spans_survive_the_round_trip(shared: Path) -> None:
    count = 0
    for entities in gold_entities(shared / "data"):
        assert parse_entities(format_entities(entities)) == entities
        count += len(entities)
    assert count > 40_000
    nested = [("Acme (UK), Ltd. [old]", "firm (held)"), ("a, b](c", "x, y"), ("\\", ")")]
    assert parse_entities(format_entities(nested)) == nested


def test_tags_become_spans() -> None:
    tokens = ["New", "York", "and", "Rome", "Rome"]
    assert entities_of_tags(tokens, ["B-city", "I-city", "O", "B-city", "B-city"]) == [
        ("New York", "city"), ("Rome", "city"), ("Rome", "city"),
    ]  # fmt: skip
    assert entities_of_tags(tokens, ["I-city", "I-city", "O", "I-city", "I-place"]) == [
        ("New York", "city"), ("Rome", "city"), ("Rome", "place"),
    ]  # fmt: skip
    for tags, message in ((["B-city"], "1 tags for 5 tokens"), (["X", *"OOOO"], "tag 'X' is none of")):
        with pytest.raises(ValueError, match=message):
            entities_of_tags(tokens, tags)
    with pytest.raises(ValueError, match="span 4 to 5 is not in 5 tokens"):
        entities_of_spans(tokens, [[4, 5, "x"]])


def test_a_broken_dialogue_is_counted_and_named(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human"}]}, {"messages": 1}, {"title": "x"}]
    rows += [{"conversations": [{"from": "narrator", "value": "Once upon a time there was a small fox."}]}]
    result = rendered(recipe_of("chat-sharegpt", written(tmp_path / "x.jsonl", rows)))
    assert result.discarded["broken"] == 4
    assert all("x.jsonl" in message for message in result.broken)
    assert "write turns as messages" in result.broken[0]
    assert "role 'narrator' is not one of" in result.broken[3]


def test_alpaca_and_messages_shaped_data_train_alike(tmp_path: Path) -> None:
    alpaca = {"instruction": "把下面的句子翻译成英文：", "input": "你好", "output": "Hello"}
    messages = {
        "messages": [
            {"role": "user", "content": "把下面的句子翻译成英文：你好"},
            {"role": "assistant", "content": "Hello"},
        ]
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "把下面的句子翻译成英文：你好"},
            {"from": "gpt", "value": "Hello"},
        ]
    }
    asked = set()
    for name, record in (("chat-belle", alpaca), ("chat-sharegpt", messages), ("chat-sharegpt", sharegpt)):
        source = written(tmp_path / "x.jsonl", [record])
        extra = ["min_words=0"]
        (pair,) = rendered(recipe_of(name, source, "heldout=0.0", *extra)).train.to_pylist()
        asked.add((pair["input"], pair["target"]))
    assert asked == {("Human: 把下面的句子翻译成英文：你好 Assistant:", "Hello")}
