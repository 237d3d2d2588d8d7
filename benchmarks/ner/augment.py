"""Many sentences out of few: a generator that copies has to meet more words than 1,600 sentences hold.

Owns what is made of the training splits, and of nothing else: mentions replaced by others of their type or by
words that nobody has seen (a name then has to be copied, it cannot be remembered), and lines of words to
repeat. Mention replacement is Dai and Adel's (2020, section 3).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openba.data.entities import spans_of_tags

REPLACED, UNSEEN = 0.5, 0.25
"""Share of the mentions that are replaced, and of those, that get other words than any mention's."""
SENTENCES, LINES = 16_000, 30_000
"""Of each set, and of words to repeat."""
LINE_WORDS = (3, 14)


class Augmenter:
    """Draws from the sentences of several sets; each a list of `{"tokens", "tags"}`."""

    def __init__(self, sets: Iterable[list[dict[str, Any]]], seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.words = sorted({word for rows in sets for row in rows for word in row["tokens"]})

    def unseen(self) -> str:
        """A word, or the first half of one with the second half of another."""
        first, second = self.random.choice(self.words), self.random.choice(self.words)
        if self.random.random() < 0.5:
            return first
        return first[: self.random.randint(1, max(1, len(first) // 2))] + second[len(second) // 2 :]

    def line(self) -> str:
        """Some words to repeat."""
        return " ".join(self.unseen() for _ in range(self.random.randint(*LINE_WORDS)))

    def sentences(self, rows: list[dict[str, Any]], count: int) -> Iterable[dict[str, list[str]]]:
        """The sentences again and again, `count` in all, with other mentions."""
        mentions: dict[str, list[list[str]]] = defaultdict(list)
        for row in rows:
            for first, last, kind in spans_of_tags(row["tokens"], row["tags"]):
                mentions[kind].append(row["tokens"][first : last + 1])
        for i in range(count):
            yield self._replaced(rows[i % len(rows)], mentions)

    def _replaced(self, row: dict[str, Any], mentions: dict[str, list[list[str]]]) -> dict[str, list[str]]:
        tokens, tags, at = [], [], 0
        for first, last, kind in spans_of_tags(row["tokens"], row["tags"]):
            tokens += row["tokens"][at:first]
            tags += ["O"] * (first - at)
            words = row["tokens"][first : last + 1]
            if self.random.random() < REPLACED:
                words = self.random.choice(mentions[kind])
                if self.random.random() < UNSEEN:
                    words = [self.unseen() for _ in words]
            tokens += words
            tags += [f"{'I' if i else 'B'}-{kind}" for i in range(len(words))]
            at = last + 1
        return {"tokens": tokens + row["tokens"][at:], "tags": tags + ["O"] * (len(row["tokens"]) - at)}


def write(folder: Path, splits: dict[str, dict[str, Path]]) -> None:
    """`NAME/train.jsonl` with the validation split as it is beside it for each set, and `repeat.jsonl`."""
    rows = {
        name: [json.loads(line) for line in parts["train"].open(encoding="utf-8")]
        for name, parts in splits.items()
    }
    augmenter = Augmenter(rows.values())
    for name, parts in splits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        _write(folder / name / "train.jsonl", augmenter.sentences(rows[name], SENTENCES))
        (folder / name / "valid.jsonl").write_bytes(parts["valid"].read_bytes())
    _write(folder / "repeat.jsonl", ({"text": augmenter.line()} for _ in range(LINES)))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
