"""Augmentation of NER training sentences, 1,600 of which have too few words to learn copying from.

Uses the training splits only. Mentions are replaced by others of their type or by unseen words (a name then
has to be copied, it cannot be memorised), and lines of words are written to be repeated. Mention replacement
follows Dai and Adel (2020, section 3).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from openba.data.entities import spans_of_tags

REPLACED_SHARE = 0.5
"""Share of the mentions that are replaced."""
UNSEEN_SHARE = 0.25
"""Share of the replacements that are unseen words, not another mention."""
SENTENCES_PER_SET = 16_000
REPEATED_LINES = 30_000
LINE_WORDS = (3, 14)
"""Fewest and most words of a line to repeat."""


class TaggedSentence(TypedDict):
    """Tokens with their BIO tags."""

    tokens: list[str]
    tags: list[str]


class Augmenter:
    """Random generator of sentences and lines from the words of several sets."""

    def __init__(self, sets: Iterable[list[TaggedSentence]], seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.words = sorted({word for rows in sets for row in rows for word in row["tokens"]})

    def make_word(self) -> str:
        """Return a word of the sets, or the first half of one with the second half of another."""
        first_word = self.random.choice(self.words)
        second_word = self.random.choice(self.words)
        if self.random.random() < 0.5:
            return first_word
        split = self.random.randint(1, max(1, len(first_word) // 2))
        return first_word[:split] + second_word[len(second_word) // 2 :]

    def make_line(self) -> str:
        """Return some words to repeat."""
        return " ".join(self.make_word() for _ in range(self.random.randint(*LINE_WORDS)))

    def make_sentences(self, rows: list[TaggedSentence], count: int) -> Iterator[TaggedSentence]:
        """Yield `count` sentences, the given ones in turn, with replaced mentions."""
        mentions: dict[str, list[list[str]]] = defaultdict(list)
        for row in rows:
            for first, last, entity_type in spans_of_tags(row["tokens"], row["tags"]):
                mentions[entity_type].append(row["tokens"][first : last + 1])
        for number in range(count):
            yield self._replace_mentions(rows[number % len(rows)], mentions)

    def _replace_mentions(
        self, row: TaggedSentence, mentions: Mapping[str, list[list[str]]]
    ) -> TaggedSentence:
        tokens: list[str] = []
        tags: list[str] = []
        position = 0
        for first, last, entity_type in spans_of_tags(row["tokens"], row["tags"]):
            tokens += row["tokens"][position:first]
            tags += ["O"] * (first - position)
            mention = row["tokens"][first : last + 1]
            if self.random.random() < REPLACED_SHARE:
                mention = self.random.choice(mentions[entity_type])
                if self.random.random() < UNSEEN_SHARE:
                    mention = [self.make_word() for _ in mention]
            tokens += mention
            tags += [f"{'I' if index else 'B'}-{entity_type}" for index in range(len(mention))]
            position = last + 1
        remaining_tokens = row["tokens"][position:]
        return {"tokens": tokens + remaining_tokens, "tags": tags + ["O"] * len(remaining_tokens)}


def write(folder: Path, splits: dict[str, dict[str, Path]]) -> None:
    """Write `NAME/train.jsonl` of each set, its validation split unchanged beside it, and `repeat.jsonl`."""
    rows_by_set = {
        name: [json.loads(line) for line in parts["train"].open(encoding="utf-8")]
        for name, parts in splits.items()
    }
    augmenter = Augmenter(rows_by_set.values())
    for name, parts in splits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        sentences = augmenter.make_sentences(rows_by_set[name], SENTENCES_PER_SET)
        _write_rows(folder / name / "train.jsonl", sentences)
        (folder / name / "valid.jsonl").write_bytes(parts["valid"].read_bytes())
    lines = ({"text": augmenter.make_line()} for _ in range(REPEATED_LINES))
    _write_rows(folder / "repeat.jsonl", lines)


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
