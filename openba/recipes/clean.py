"""Recipe of the cleaning: the paper's filters, near duplicates, and filters of the user's own."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from openba import durable
from openba.artifacts import Recipe
from openba.errors import UserError
from openba.recipes.numbers import Count, CountOrNone, Finite, PositiveShare


def _complete(
    values: Any,  # Any: pydantic passes what the YAML holds
    key: str,
    expected_type: type | tuple[type, ...],
    derived_key: str,
    derive: Callable[[Any], str],
) -> Any:
    """Return a recipe's values with one that follows from another, unless it is there already.

    A recipe that was read before and comes here as JSON has it: the class or the files may be others by now,
    or absent where a manifest is read. A value of a wrong type is left to pydantic's own message.
    """
    # Read first here: a validator of one field could not fill in another.
    if not isinstance(values, Mapping) or not isinstance(values.get(key), expected_type):
        return values
    if values.get(derived_key):
        return values
    return {**values, derived_key: derive(values[key])}


def _version_of_class(name: str) -> str:
    """Return the `version` of a user's filter class, named as `package.module:Class`."""
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r}: expected package.module:Class")
    try:
        # Imported here so that a misspelt name ends the command before any step.
        filter_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}; is it on PYTHONPATH?") from None
    return str(getattr(filter_class, "version", ""))


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
        return _complete(values, "filter", str, "version", _version_of_class)


class BadWordsRecipe(Recipe):
    """Lists of words whose documents go."""

    files: tuple[str, ...]
    """Text files with a word a line, such as those of LDNOOBW; every machine that cleans must have them."""
    digest: str = ""
    """Of the files' contents; filled in when the recipe is read, so that another list cleans anew."""

    @model_validator(mode="before")
    @classmethod
    def _read_digest(cls, values: Any) -> Any:  # Any: pydantic passes what the YAML holds
        return _complete(values, "files", (list, tuple), "digest", digest_of_files)


def digest_of_files(files: Sequence[object]) -> str:
    """Return a digest of the contents of text files.

    Raises:
        ValueError: a file cannot be read as UTF-8.
    """
    state = hashlib.sha256()
    for file in files:
        try:
            state.update(Path(str(file)).read_text(encoding="utf-8").encode() + b"\0")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    return state.hexdigest()[:16]


def digest_of_model(file: str) -> str:
    """Return a digest of a model file.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        return durable.sha256(Path(file))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None


def require_same_contents(recipe: BadWordsRecipe | ScoringModelRecipe, where: str) -> None:
    """Refuse files that are not those of the recipe.

    Raises:
        UserError: a file cannot be read on this machine, or has changed since the recipe was read.
    """
    try:
        if isinstance(recipe, BadWordsRecipe):
            digest = digest_of_files(recipe.files)
        else:
            digest = digest_of_model(recipe.file)
    except ValueError as error:
        raise UserError(f"{where}: {error}; all machines need it") from None
    if digest != recipe.digest:
        raise UserError(
            f"{where}: other contents than when the pipeline was started; run it again, or give all machines "
            "the same files"
        )


class ScoringModelRecipe(Recipe):
    """A model that gives each text a score; see `openba/data/quality_model.py`."""

    file: str
    """A linear model in a `.safetensors` file, or a fastText model; all machines that read it need it."""
    label: str | None = None
    """fastText: the label whose probability is the score, such as `__label__hq`. Without one the file is a
    linear model."""
    digest: str = ""
    """Of the file; filled in when the recipe is read, so that another model is another fingerprint."""

    @model_validator(mode="before")
    @classmethod
    def _read_digest(cls, values: Any) -> Any:  # Any: pydantic passes what the YAML holds
        return _complete(values, "file", str, "digest", digest_of_model)


class QualityModelRecipe(ScoringModelRecipe):
    """A model whose low scores remove documents."""

    min: Finite
    """Documents with a lower score go."""


_NOT_OF_THE_PAPER = (
    "normalise", "private_numbers", "gopher_repetition", "gopher", "c4", "fineweb", "bad_words",
    "quality_model", "near_dedup",
    "filters",
)  # fmt: skip


class CleanRecipe(Recipe):
    """The paper's filters (section 3.1.1), each with its switch. Order: as the fields stand."""

    normalise: tuple[Literal["encoding", "forms", "script"], ...] = ()
    """Repair mojibake (ftfy), write full-width letters, ligatures and the like as usual, write traditional
    Chinese in simplified characters (OpenCC); in this order, whatever the order here. Not in the paper."""
    privacy: bool = True
    """Remove phone numbers, e-mail addresses and links."""
    private_numbers: tuple[
        Literal["id_card", "bank_card", "passport", "qq", "wechat", "ip", "plate"], ...
    ] = ()
    """Remove these as well (not in the paper)."""
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
    gopher_repetition: bool = False
    """Remove documents in which paragraphs, lines or runs of words repeat each other (MassiveText)."""
    gopher: bool = False
    """Remove documents of odd length, words, symbols or lists, and those without stop words (MassiveText)."""
    c4: bool = False
    """Remove lines that end no sentence, and documents with fewer than five sentences (C4)."""
    fineweb: bool = False
    """Remove documents whose lines are short, repeated or end no sentence (FineWeb)."""
    bad_words: BadWordsRecipe | None = None
    """Remove documents that hold a listed word (C4)."""
    quality_model: QualityModelRecipe | None = None
    """Remove documents to which a model of yours gives a low score."""
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
        # Recipes are hashed as they are serialised: one without filters that are not the paper's has the
        # fingerprint that it had before there were any.
        omitted = {name for name in _NOT_OF_THE_PAPER if not getattr(self, name)}
        if not self.near_dedup:
            omitted |= {"near_similarity", "near_units"}
        return {key: value for key, value in serialize(self).items() if key not in omitted}
