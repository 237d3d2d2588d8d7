"""Read conversations in their published forms, clean them, and write the encoder's text.

The encoder's text is the paper's `Human: … Assistant:` (section 6.1).
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from openba.data.html_answers import is_html_answer, text_of_html

Record = Mapping[str, Any]  # Any: JSON of many published forms
Message = dict[str, str]
"""`role`, one of a speaker's names, and `content`."""

_USER = ("user", "human", "prompter")
_ASSISTANT = ("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "function_call")
_WITHOUT_NAME = ("system", "tool", "function", "observation", "context")
# Role in the data -> the paper's name (section 6.1). ShareGPT's role is the product that answered.
_SPEAKERS = dict.fromkeys(_USER, "Human") | dict.fromkeys(_ASSISTANT, "Assistant")

# `<|Human|>: … <eoh>` around each field of MOSS-003, `[MOSS]: … <eoa>` of MOSS-002.
_MOSS_MARKERS = re.compile(r"^\s*(?:<\|[\w ]+\|>|\[\w+\]):\s*|\s*<eo[a-z]>\s*$")
_MOSS_TURN = re.compile(r"\[(Human|MOSS)\]:\s*(.*?)\s*(?:<eo[a-z]>|(?=\[(?:Human|MOSS)\]:)|\Z)", re.DOTALL)
_BELLE_TURN = re.compile(r"^(Human|Assistant)[:：]", re.MULTILINE)


def is_answer(message: Mapping[str, str]) -> bool:
    """Return whether the assistant speaks."""
    return _SPEAKERS.get(message["role"]) == "Assistant"


def history(messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
    """Write a conversation as the paper's encoder text, `Human: .. Assistant: .. Human: .. Assistant:` (6.1).

    Args:
        messages: `{role, content}` with the roles of OpenAI's or ShareGPT's data; messages of a system or a
            tool are written without a name.

    Returns:
        The text, and the character offsets at which it may be cut: those of the human turns, and of an answer
        before the first of them. Cutting from the first offset to a later one drops the oldest turns.

    Raises:
        ValueError: a role is unknown.
    """
    text = ""
    turns: list[int] = []
    for message in messages:
        role = message["role"]
        turn_text = message["content"]
        speaker = _SPEAKERS.get(role)
        if speaker is None and role not in _WITHOUT_NAME:
            names = ", ".join((*_USER, *_ASSISTANT, *_WITHOUT_NAME))
            raise ValueError(f"role {role!r} is not one of {names}")
        if speaker == "Human" or (speaker == "Assistant" and not turns):
            turns.append(len(text))
        text += f"{turn_text} " if speaker is None else f"{speaker}: {turn_text} "
    if messages and not turns:  # messages of a system or a tool only: cut like a turn
        turns = [0]
    return f"{text}Assistant:", turns


def clean(messages: Sequence[Message]) -> tuple[list[Message], Counter[str]]:
    """Return a conversation that begins with the user and has no empty turn, and what was changed.

    HTML answers become text. Empty turns and answers before the first question are removed. Consecutive turns
    of one speaker are joined, each on a new line.

    Returns:
        The messages, and the number of turns by change: `html_to_text`, `empty_turns`, `joined_turns`,
        `answers_before_a_question`.
    """
    counts: Counter[str] = Counter()
    cleaned: list[Message] = []
    last_question = ""
    has_html = False
    for message in messages:
        role = message["role"]
        turn_text = message["content"]
        if is_answer(message) and is_html_answer(turn_text, last_question):
            turn_text = text_of_html(turn_text)
            has_html = True
            counts["html_to_text"] += 1
        turn_text = turn_text.strip()
        # Whether an answer was scraped as HTML depends on what the last question asked for.
        if role in _USER:
            last_question = turn_text
        speaker = _SPEAKERS.get(role)
        if not turn_text:
            counts["empty_turns"] += 1
        elif speaker == "Assistant" and not any(_SPEAKERS.get(m["role"]) == "Human" for m in cleaned):
            counts["answers_before_a_question"] += 1
        elif speaker is not None and cleaned and _SPEAKERS.get(cleaned[-1]["role"]) == speaker:
            cleaned[-1] = {**cleaned[-1], "content": f"{cleaned[-1]['content']}\n{turn_text}"}
            counts["joined_turns"] += 1
        else:
            cleaned.append({"role": role, "content": turn_text})
    if has_html:  # data scraped as HTML has entities in the questions too
        for message in cleaned:
            if message["role"] in _USER:
                message["content"] = html.unescape(message["content"])
    return cleaned, counts


def find_messages(record: Record) -> list[Message] | None:
    """Return a record's conversation, None if the record has none of the published forms.

    The forms are OpenAI's `messages`, ShareGPT's `conversations` and `items`, LIMA's list of texts,
    DialogStudio's `log`, MOSS's `chat` and `plain_text`, and Alpaca's `instruction`, `input`, `output`
    (BELLE), whose instruction may hold a conversation.

    Raises:
        TypeError, KeyError, AttributeError: a field has the name of a form but other content.
    """
    for key, read in _FORMS.items():
        if key in record:
            return [{"role": role, "content": turn_text.strip()} for role, turn_text in read(record)]
    return None


def without_moss_markers(record: Record) -> dict[str, Any]:
    """Return a record whose `chat` is a list of turns without MOSS's markers; any other as it is."""
    if "chat" not in record or not isinstance(record["chat"], dict | list):
        return dict(record)
    turns = record["chat"].values() if isinstance(record["chat"], dict) else record["chat"]
    return {**record, "chat": [_without_markers(turn) if isinstance(turn, dict) else turn for turn in turns]}


def _without_markers(turn: Record) -> dict[str, Any]:
    return {
        key: _MOSS_MARKERS.sub("", value) if isinstance(value, str) else value for key, value in turn.items()
    }


Turns = Iterator[tuple[str, str]]


def _messages(record: Record) -> Turns:
    for turn in record["messages"]:
        yield turn["role"], _text(turn["content"])


def _text(turn_text: Any) -> str:
    """Return the text of a content: a string, None, or OpenAI's list of parts."""
    if isinstance(turn_text, list):
        return "".join(part["text"] for part in turn_text if part["type"] == "text")
    return turn_text or ""


def _reader_of_list(key: str) -> Callable[[Record], Turns]:
    """Return a reader of ShareGPT's `[{from, value}]`, or of alternating texts as in LIMA, in field `key`."""

    def read(record: Record) -> Turns:
        for position, turn in enumerate(record[key]):
            if isinstance(turn, str):
                yield ("user", "assistant")[position % 2], turn
            elif "from" in turn:
                yield turn["from"], turn["value"] or ""
            elif "role" in turn:
                yield turn["role"], _text(turn["content"])
            else:  # the release's own chat data
                yield "user", turn["human"]
                yield "assistant", turn["assistant"]

    return read


def _dialog_studio(record: Record) -> Turns:
    for turn in record["log"]:
        yield "user", turn["user utterance"]
        yield "assistant", turn["system response"]


def _moss_3(record: Record) -> Turns:
    for turn in without_moss_markers(record)["chat"]:
        yield "user", turn["Human"]
        yield "assistant", turn["MOSS"]


def _moss_2(record: Record) -> Turns:
    for turn in _MOSS_TURN.finditer(record["plain_text"]):
        yield {"Human": "user", "MOSS": "assistant"}[turn[1]], turn[2]


def _alpaca(record: Record) -> Turns:
    question_text = record["instruction"] + (record.get("input") or "")
    parts = _BELLE_TURN.split(question_text)
    if len(parts) > 1 and not parts[0].strip():
        # BELLE's multiturn_chat: "Human: …\nAssistant: …\nHuman: …\nAssistant:", the last answer in `output`
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
            if speaker == "Human" or text.strip():
                yield {"Human": "user", "Assistant": "assistant"}[speaker], text
    else:
        yield "user", question_text
    yield "assistant", record["output"]


# Field by which a published form is recognised -> reader of its turns.
_FORMS: dict[str, Callable[[Record], Turns]] = {
    "messages": _messages,
    "conversations": _reader_of_list("conversations"),
    "conversation": _reader_of_list("conversation"),
    "items": _reader_of_list("items"),
    "log": _dialog_studio,
    "chat": _moss_3,
    "plain_text": _moss_2,
    "instruction": _alpaca,
}
