"""Conversations of the data sets as they are published, in one form, cleaned, and as the encoder's text.

Owns the names of the speakers, the published forms of a conversation, what is cleaned of it, and the paper's
`Human: … Assistant:` (section 6.1). It drops no conversation (openba.data.tasks).
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from openba.data.html_answers import is_html_answer, text_of_html

Message = dict[str, str]
"""`role`, one of a speaker's names, and `content`."""

_USER = ("user", "human", "prompter")
_ASSISTANT = ("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "function_call")
_UNSPOKEN = ("system", "tool", "function", "observation", "context")
_SPEAKERS = dict.fromkeys(_USER, "Human") | dict.fromkeys(_ASSISTANT, "Assistant")
"""A role's name in the data -> the paper's (section 6.1). ShareGPT names the product that answered."""

_MOSS_MARKERS = re.compile(r"^\s*(?:<\|[\w ]+\|>|\[\w+\]):\s*|\s*<eo[a-z]>\s*$")
"""`<|Human|>: … <eoh>` around each field of MOSS-003, `[MOSS]: … <eoa>` of MOSS-002."""
_MOSS_TURN = re.compile(r"\[(Human|MOSS)\]:\s*(.*?)\s*(?:<eo[a-z]>|(?=\[(?:Human|MOSS)\]:)|\Z)", re.DOTALL)
_BELLE_TURN = re.compile(r"^(Human|Assistant)[:：]", re.MULTILINE)


def is_answer(message: Mapping[str, str]) -> bool:
    """Whether the assistant speaks."""
    return _SPEAKERS.get(message["role"]) == "Assistant"


def history(messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
    """Write a conversation as the paper's encoder text, `Human: .. Assistant: .. Human: .. Assistant:` (6.1).

    Args:
        messages: `{role, content}` with the roles of OpenAI's or ShareGPT's data; what a system or a tool
            says stands without a name.

    Returns:
        The text, and the character offsets at which it may be cut: those of its human turns, and of what the
        assistant says before the first. Cutting from the first offset to a later one drops the oldest turns.

    Raises:
        ValueError: a role is unknown.
    """
    text = ""
    turns: list[int] = []
    for message in messages:
        role, content = message["role"], message["content"]
        speaker = _SPEAKERS.get(role)
        if speaker is None and role not in _UNSPOKEN:
            names = ", ".join((*_USER, *_ASSISTANT, *_UNSPOKEN))
            raise ValueError(f"role {role!r} is not one of {names}")
        if speaker == "Human" or (speaker == "Assistant" and not turns):
            turns.append(len(text))
        text += f"{content} " if speaker is None else f"{speaker}: {content} "
    if messages and not turns:  # only a system or a tool has spoken: that is cut like a turn
        turns = [0]
    return f"{text}Assistant:", turns


def clean(messages: Sequence[Message]) -> tuple[list[Message], Counter[str]]:
    """Return a conversation that begins with the user and has no empty turn, and what was changed.

    HTML answers become text. Empty turns go. Turns of one speaker in a row become one, on lines of their own.
    Answers before the first question go, since nothing asks for them.

    Returns:
        The messages; and number of turns by change: `html_to_text`, `empty_turns`, `joined_turns`,
        `answers_before_a_question`.
    """
    counts: Counter[str] = Counter()
    cleaned: list[Message] = []
    question = ""
    has_html = False
    for message in messages:
        role, content = message["role"], message["content"]
        if is_answer(message) and is_html_answer(content, question):
            content = text_of_html(content)
            has_html = True
            counts["html_to_text"] += 1
        content = content.strip()
        if role in _USER:
            question = content
        speaker = _SPEAKERS.get(role)
        if not content:
            counts["empty_turns"] += 1
        elif speaker == "Assistant" and not any(_SPEAKERS.get(m["role"]) == "Human" for m in cleaned):
            counts["answers_before_a_question"] += 1
        elif speaker is not None and cleaned and _SPEAKERS.get(cleaned[-1]["role"]) == speaker:
            cleaned[-1] = {**cleaned[-1], "content": f"{cleaned[-1]['content']}\n{content}"}
            counts["joined_turns"] += 1
        else:
            cleaned.append({"role": role, "content": content})
    if has_html:  # such a dump escapes the questions too
        for message in cleaned:
            if message["role"] in _USER:
                message["content"] = html.unescape(message["content"])
    return cleaned, counts


def find_messages(record: Mapping[str, Any]) -> list[Message] | None:
    """Return a record's conversation, whichever published form it has; None if it has none of them.

    Known are OpenAI's `messages`, ShareGPT's `conversations` and `items`, LIMA's list of texts,
    DialogStudio's `log`, MOSS's `chat` and `plain_text`, and Alpaca's `instruction`, `input`, `output`
    (BELLE), whose instruction may hold a conversation.

    Raises:
        TypeError, KeyError, AttributeError: a field has the form's name and not its form.
    """
    for key, read in _FORMS.items():
        if key in record:
            return [{"role": role, "content": content.strip()} for role, content in read(record)]
    return None


def without_moss_markers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose `chat` is a list of turns without MOSS's markers; any other as it is."""
    if "chat" not in record or not isinstance(record["chat"], dict | list):
        return dict(record)
    turns = record["chat"].values() if isinstance(record["chat"], dict) else record["chat"]
    return {**record, "chat": [_without_markers(turn) if isinstance(turn, dict) else turn for turn in turns]}


def _without_markers(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _MOSS_MARKERS.sub("", value) if isinstance(value, str) else value for key, value in turn.items()
    }


Turns = Iterator[tuple[str, str]]


def _messages(record: Mapping[str, Any]) -> Turns:
    for turn in record["messages"]:
        yield turn["role"], _text(turn["content"])


def _text(content: Any) -> str:
    """A content's text: a string, none, or OpenAI's list of parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    return content or ""


def _named(key: str) -> Callable[[Mapping[str, Any]], Turns]:
    """Read ShareGPT's `[{from, value}]`, or texts that alternate, as in LIMA."""

    def read(record: Mapping[str, Any]) -> Turns:
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


def _dialog_studio(record: Mapping[str, Any]) -> Turns:
    for turn in record["log"]:
        yield "user", turn["user utterance"]
        yield "assistant", turn["system response"]


def _moss_3(record: Mapping[str, Any]) -> Turns:
    for turn in without_moss_markers(record)["chat"]:
        yield "user", turn["Human"]
        yield "assistant", turn["MOSS"]


def _moss_2(record: Mapping[str, Any]) -> Turns:
    for turn in _MOSS_TURN.finditer(record["plain_text"]):
        yield {"Human": "user", "MOSS": "assistant"}[turn[1]], turn[2]


def _alpaca(record: Mapping[str, Any]) -> Turns:
    asked = record["instruction"] + (record.get("input") or "")
    parts = _BELLE_TURN.split(asked)
    if len(parts) > 1 and not parts[0].strip():
        # BELLE's multiturn_chat: "Human: …\nAssistant: …\nHuman: …\nAssistant:", and the last answer apart
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True):
            if speaker == "Human" or text.strip():
                yield {"Human": "user", "Assistant": "assistant"}[speaker], text
    else:
        yield "user", asked
    yield "assistant", record["output"]


_FORMS: dict[str, Callable[[Mapping[str, Any]], Turns]] = {
    "messages": _messages,
    "conversations": _named("conversations"),
    "conversation": _named("conversation"),
    "items": _named("items"),
    "log": _dialog_studio,
    "chat": _moss_3,
    "plain_text": _moss_2,
    "instruction": _alpaca,
}
"""Field that tells a published form -> how its turns are read."""
