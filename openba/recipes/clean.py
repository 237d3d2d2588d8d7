"""Recipe of the cleaning: the paper's filters, near duplicates, and filters of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from openba.artifacts import Recipe
from openba.recipes.numbers import Count, CountOrNone, PositiveShare


class FilterRecipe(Recipe):
    """A filter of the user's own: a class derived from `openba.data.clean.filter.Filter`."""

    filter: str
    """`package.module:Class`; Python must be able to import it on every machine that cleans."""
    options: dict[str, JsonValue] = {}
    """Arguments of the class, by name."""
    version: str = ""
    """The class's own `version`; filled in when the recipe is read, so that raising it cleans anew."""

    @model_validator(mode="before")
    @classmethod
    def _read_version(cls, values: Any) -> Any:  # Any: pydantic passes what the YAML holds
        if not isinstance(values, Mapping) or not isinstance(values.get("filter"), str):
            return values
        # The class may be of a newer version by now, or not be importable where a manifest is read.
        if values.get("version"):  # a recipe that was read before and came here as JSON
            return values
        module_name, colon, class_name = values["filter"].partition(":")
        if not colon:
            raise ValueError(f"{values['filter']!r}: expected package.module:Class")
        try:
            # Imported here so that a misspelt name ends the command before any step.
            filter_class = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            reason = f"{values['filter']!r} cannot be imported: {error}; is it on PYTHONPATH?"
            raise ValueError(reason) from None
        return {**values, "version": str(getattr(filter_class, "version", ""))}


class CleanRecipe(Recipe):
    """The paper's filters (section 3.1.1), each with its switch. Order: as the fields stand."""

    privacy: bool = True
    """Remove phone numbers, e-mail addresses and links."""
    html: bool = True
    """Remove HTML tags and decode entities."""
    unusual_characters: bool = True
    """Remove control, private-use and replacement characters."""
    document_dedup: bool = True
    """Keep the first of documents with the same text."""
    character_dedup: bool = True
    """Shorten runs of one repeated character, or of a short repeated sequence."""
    kept_repeats: Count = 3
    """So many instances stay; runs that are no longer stay as they are. The paper keeps "a single instance",
    that is 1. Digits, indentation and table cells always stay."""
    kept_signs: Count = 10
    """So many stay of signs, emoji and words of one letter, whose number is often their meaning: ★★★★★, ++++,
    )))), AAAA. The paper makes no difference: 1."""
    paragraph_dedup: bool = True
    """Remove runs of 1..max_sentences consecutive sentences that occurred before."""
    max_sentences: Count = 99
    min_repeat_characters: Count = 20
    """Shorter repeated runs stay (the paper gives no figure; 1 would drop every second 'Thank you.')."""
    literal_sentences: bool = False
    """End a sentence at every stop and every line end. By default it does not end within quotation marks and
    brackets, nor where a line goes on: in wrapped text, verses, tables, lists and code."""
    min_words: CountOrNone = 10
    """Sentences with fewer words go; for Chinese one Han character counts as a word. 0 keeps all."""
    languages: tuple[Literal["zh", "en"], ...] = ("zh", "en")
    """Keep documents that CLD2 is sure are in one of these; empty keeps all."""
    near_dedup: bool = False
    """Remove documents that are nearly the same as an earlier one that stays (not in the paper)."""
    near_similarity: PositiveShare = 0.8
    """Least Jaccard similarity of two documents' shingles for the later one to be removed."""
    near_units: Count = 5
    """Units per shingle: Han characters and words."""
    filters: tuple[FilterRecipe, ...] = ()
    """Filters of your own, run after `min_words` in this order; see `openba/data/clean/filter.py`."""

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes are hashed as they are serialised: one that uses neither own filters nor the search for near
        # duplicates has the fingerprint that it had before there were any.
        omitted = set() if self.filters else {"filters"}
        if not self.near_dedup:
            omitted |= {"near_dedup", "near_similarity", "near_units"}
        return {key: value for key, value in serialize(self).items() if key not in omitted}
