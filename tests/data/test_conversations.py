"""Conversations as they are published: every form is read, cleaned, and cut from its oldest turn."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.config import CONFIGS, load
from openba.data.conversations import clean, find_messages, history
from openba.data.html_answers import is_html_answer, text_of_html
from openba.data.instruct import encode_fitting
from openba.data.labelled import render
from openba.data.pairs import Rendered
from openba.data.sources import read
from openba.recipes.data import TaskRecipe
from openba.tokenizer.tokenizer import Tokenizer

Q, A = "Why is the sky blue?", "Air scatters blue light more than red light."
TURNS = [("user", Q), ("assistant", A)]

FORMS: dict[str, dict[str, Any]] = {
    "OpenAI": {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
    "OpenAI, parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": Q}]},
            {"role": "assistant", "content": A},
        ]
    },
    "ShareGPT": {"id": "x_0", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "ShareGPT, first dump": {
        "id": "x",
        "items": [{"from": "human", "value": Q}, {"from": "bing", "value": A}],
    },
    "BELLE 3.5M": {"conversations": [{"from": "human", "value": Q}, {"from": "assistant", "value": A}]},
    "LIMA": {"conversations": [Q, A], "source": "stackexchange"},
    "the release": {"conversations": [{"human": Q, "assistant": A}]},
    "DialogStudio": {
        "log": [{"turn id": 1, "user utterance": Q, "system response": A, "dialog history": ""}]
    },
    "MOSS-003": {
        "meta_instruction": "You are an AI assistant.\n",
        "chat": {
            "turn_1": {
                "Human": f"<|Human|>: {Q}<eoh>\n",
                "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                "Commands": "<|Commands|>: None<eoc>\n",
                "Tool Responses": "<|Results|>: None<eor>\n",
                "MOSS": f"<|MOSS|>: {A}<eom>\n",
            }
        },
    },
    "MOSS-002": {"plain_text": f"[Human]: {Q}<eoh> [MOSS]: {A}<eoa>"},
    "Alpaca": {"instruction": "Why is the sky ", "input": "blue?", "output": A},
    "BELLE 2M": {"instruction": Q, "input": "", "output": A},
}


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_are_read(form: str) -> None:
    messages = find_messages(FORMS[form])
    assert messages is not None
    text, _ = history(messages)
    assert text == f"Human: {Q} Assistant: {A} Assistant:"


def test_a_conversation_in_an_instruction_is_split_into_turns() -> None:
    record = {
        "instruction": "Human:你好\nAssistant:你好！\nHuman:再见\nAssistant:",
        "input": "",
        "output": "再见！",
    }
    messages = find_messages(record)
    assert messages is not None
    assert [message["content"] for message in messages] == ["你好", "你好！", "再见", "再见！"]
    assert find_messages({"text": "x"}) is None


def rendered(path: Path, name: str, *overrides: str) -> Rendered:
    task = CONFIGS / "task" / "expert" / f"{name}.yaml"
    recipe = load(task, TaskRecipe, [f"source.path={path}", "heldout=0.0", *overrides])
    return render(recipe, pa.Table.from_batches(read(name, recipe.source)), name)


@pytest.mark.parametrize("layout", ["lines.jsonl", "lines.json", "list.json", "object.json", "table.parquet"])
def test_every_layout_of_a_file_gives_the_same_pairs(layout: str, tmp_path: Path) -> None:
    rows = [FORMS["ShareGPT"] | {"id": str(i), "n": i} for i in range(3)]
    for row in rows:
        row["conversations"] = [{"from": "human", "value": f"{Q} {row['n']}"}, {"from": "gpt", "value": A}]
    path = tmp_path / layout
    if layout.startswith("lines"):
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif layout == "list.json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif layout == "object.json":
        path.write_text(json.dumps({f"train--{row['id']}": row for row in rows}), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    train = rendered(path, "chat-sharegpt").train.to_pylist()
    assert [(pair["input"], pair["target"]) for pair in train] == [
        (f"Human: {Q} {i} Assistant:", A) for i in range(3)
    ]


def test_a_broken_list_is_named(tmp_path: Path) -> None:
    from openba.errors import UserError

    path = tmp_path / "x.json"
    path.write_text('[{"conversations": []},', encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.json: no valid JSON .* or a list of objects"):
        rendered(path, "chat-sharegpt")


def test_roles_of_other_products_and_tools_are_known() -> None:
    roles = [("human", "a"), ("tool", "b"), ("chatgpt", "c"), ("user", "d"), ("bing", "e")]
    messages = [{"role": role, "content": content} for role, content in roles]
    assert history(messages)[0] == "Human: a b Assistant: c Human: d Assistant: e Assistant:"
    with pytest.raises(ValueError, match="role 'narrator' is not one of user, human"):
        history([{"role": "narrator", "content": "x"}])


def test_what_is_cleaned_is_counted() -> None:
    said = [
        ("system", "Be brief."), ("assistant", "Welcome!"), ("user", ""), ("user", "a"), ("user", "b"),
        ("assistant", "c"), ("assistant", ""), ("assistant", "d"), ("user", "&lt;e&gt;"),
        ("assistant", "<p>f &amp; g</p>"), ("assistant", None or ""),
    ]  # fmt: skip
    messages, counts = clean([{"role": role, "content": content} for role, content in said])
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be brief."), ("user", "a\nb"), ("assistant", "c\nd"), ("user", "<e>"),
        ("assistant", "f & g"),
    ]  # fmt: skip
    assert counts == {
        "answers_before_a_question": 1, "empty_turns": 3, "joined_turns": 2, "html_to_text": 1,
    }  # fmt: skip


_SAID = st.lists(
    st.tuples(
        st.sampled_from(["user", "gpt", "system", "tool"]), st.sampled_from(["", " ", "a", "b c", "<p>d</p>"])
    )
)


@given(_SAID)
def test_cleaned_conversations_begin_with_the_user_and_alternate(said: list[tuple[str, str]]) -> None:
    messages, counts = clean([{"role": role, "content": content} for role, content in said])
    spoken = [message["role"] for message in messages if message["role"] in ("user", "gpt")]
    assert spoken[:1] in ([], ["user"])
    assert all(message["content"].strip() == message["content"] != "" for message in messages)
    adjacent = pairwise(messages)
    assert not any(first["role"] == second["role"] in ("user", "gpt") for first, second in adjacent)
    dropped = counts["empty_turns"] + counts["joined_turns"] + counts["answers_before_a_question"]
    assert len(messages) == len(said) - dropped
    assert clean(messages)[0] == messages


PAGE = (
    '<div class="markdown prose w-full break-words light"><p>Use <code>print</code>:</p><pre>'
    '<div class="bg-black"><div class="flex"><span>python</span><button class="flex">Copy code</button></div>'
    '<div><code class="hljs language-python"><span class="hljs-built_in">print</span>(a_b * 2 &lt; 3)\nx = 1'
    "</code></div></div></pre><ol><li><p>one</p></li><li><p>two</p></li></ol><ul><li>三</li></ul></div>"
)


def test_html_answers_become_the_text_that_was_shown() -> None:
    assert text_of_html(PAGE) == (
        "Use `print`:\n\n```python\nprint(a_b * 2 < 3)\nx = 1\n```\n\n1. one\n2. two\n\n- 三"
    )


@pytest.mark.parametrize(
    ("text", "question", "verdict"),
    [
        (PAGE, "", True),
        (PAGE, "Write HTML", True),
        ("<p>你好</p>", "你好吗", True),
        ("<p>Hello</p>", "Write a paragraph in HTML", False),
        ("<div><form></form></div>", "a sign-up form", False),
        ("<!DOCTYPE html><html></html>", "a page", False),
        ("Use the <p> tag.", "paragraphs?", False),
        ("1 < 2 and 3 > 2", "", False),
        ("", "", False),
    ],
)
def test_html_that_was_asked_for_stays(text: str, question: str, verdict: bool) -> None:
    assert is_html_answer(text, question) == verdict


def test_the_newest_question_is_never_cut(tokenizer: Tokenizer) -> None:
    long = "one two three four five six seven eight nine ten " * 8
    question = "What is the last word of this question, please?"
    for before in (
        [("assistant", long), ("user", question)],
        [("system", long), ("user", question)],
        [("user", long), ("assistant", long), ("user", question)],
        [("system", "Be brief."), ("assistant", long), ("user", "a"), ("assistant", "b"), ("user", question)],
    ):
        text, turns = history([{"role": role, "content": content} for role, content in before])
        ids, _, cut = encode_fitting(tokenizer, text, turns, 60)
        assert len(ids) <= 60
        assert not cut
        assert tokenizer.decode(ids[1:-2]).endswith(f"Human: {question} Assistant:")
    text, turns = history([{"role": "user", "content": f"{long} {question}"}])
    ids, left_out, cut = encode_fitting(tokenizer, text, turns, 60)
    assert (left_out, cut) == (0, True)
    assert tokenizer.decode(ids[1:-2]).endswith(f"{question} Assistant:")


def test_a_published_moss_call_is_read(tmp_path: Path) -> None:
    turn = {
        "Human": "<|Human|>: 3乘7是多少？<eoh>\n",
        "Commands": '<|Commands|>: Calculate("3*7")<eoc>\n',
        "MOSS": "<|MOSS|>: 21<eom>\n",
    }
    other = turn | {"Commands": "<|Commands|>: None<eoc>\n"}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"chat": {"turn_1": turn, "turn_2": other}}), encoding="utf-8")
    result = rendered(path, "tool-search")
    assert [(p["input"], p["target"]) for p in result.train.to_pylist()] == [
        ("3乘7是多少？", 'Calculate("3*7")')
    ]
    assert result.discarded["require"] == 1


def test_pile_ner_is_read_as_published(tmp_path: Path, shared: Path) -> None:
    said = [
        "Text: Ann met Bob in Rome .", "I've read this text.",
        "What describes place in the text?", '["Rome"]',
        "What describes person in the text?", '["Bob", "Ann"]', "What describes date in the text?", "[]",
    ]  # fmt: skip
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    broken = [
        {"from": "human", "value": "Text: x"},
        {"from": "gpt", "value": "y"},
        {"from": "human", "value": "?"},
    ]
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps([{"id": "1", "conversations": turns}, {"conversations": broken}]), encoding="utf-8"
    )
    result = rendered(path, "ner-pile")
    (pair,) = result.train.to_pylist()
    assert (
        "Use the specific entity tags: date, person, place. Sentence: Ann met Bob in Rome ." in pair["input"]
    )
    assert pair["target"] == "[Ann](person), [Bob](person), [Rome](place)"
    assert result.discarded["broken"] == 1
    public = shared / "data" / "ner_universalner_format" / "conversations.jsonl"
    everything = rendered(public, "ner-pile")
    assert "broken" not in everything.discarded
    assert len(everything.train) > 200
