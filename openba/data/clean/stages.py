"""Order of the filters that a recipe switches on, and of the deduplications between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from openba.data.clean.filter import Filter, Stage, load_filter
from openba.data.clean.language import Languages
from openba.data.clean.markup import Markup
from openba.data.clean.normalise import FILTERS as NORMALISATIONS
from openba.data.clean.privacy import Privacy
from openba.data.clean.private_numbers import PrivateNumbers
from openba.data.clean.quality.bad_words import BadWords
from openba.data.clean.quality.c4 import C4Lines
from openba.data.clean.quality.fineweb import FineWebQuality
from openba.data.clean.quality.gopher import GopherQuality, GopherRepetition
from openba.data.clean.quality.model_score import ModelScore
from openba.data.clean.repeats import Repeats
from openba.data.clean.short_sentences import ShortSentences
from openba.data.clean.unusual_characters import UnusualCharacters
from openba.errors import UserError
from openba.recipes.clean import CleanRecipe

DOCUMENT_DEDUP = "document_dedup"
PARAGRAPH_DEDUP = "paragraph_dedup"
DOCUMENT_DEDUP_AGAIN = "document_dedup_again"
NEAR_DEDUP = "near_dedup"
INPUT = "input"
"""Stage under which texts that are not UTF-8 and row groups that cannot be read are recorded."""
UNFILTERED = "unfiltered"
"""Stage of sources that are not cleaned."""
_PRIVACY_REPEATS = ("privacy_again", "privacy_last", "privacy_after_c4")
_QUALITY = (GopherRepetition, GopherQuality, C4Lines, FineWebQuality)
"""Their names are those of the switches in `CleanRecipe`; the order is FineWeb's."""
_SHIPPED: tuple[type[Filter], ...] = (
    Markup,
    UnusualCharacters,
    Privacy,
    Repeats,
    ShortSentences,
    Languages,
    *_QUALITY,
    BadWords,
    ModelScore,
    PrivateNumbers,
    *NORMALISATIONS.values(),
)


class _Entry(NamedTuple):
    """Stage of the chain with the condition that switches it on."""

    is_on: bool
    name: str
    make: Callable[[], Filter]
    only_changed: bool = False


def stages_before_paragraph_dedup(clean_recipe: CleanRecipe) -> list[Stage]:
    """Return the filters between the first document deduplication and the paragraph deduplication.

    Privacy follows markup and unusual characters, because both can hide a value: `a&#64;b.com`, a number with
    invisible characters in it. It runs again after every filter that joins what was separate:
    `138----1234----5678` loses its separators to the character deduplication.
    """
    return _switched_on(
        [
            *(
                _Entry(step in clean_recipe.normalise, rewriter.name, rewriter)
                for step, rewriter in NORMALISATIONS.items()
            ),
            _Entry(clean_recipe.html, Markup.name, Markup),
            _Entry(clean_recipe.unusual_characters, UnusualCharacters.name, UnusualCharacters),
            _Entry(
                bool(clean_recipe.private_numbers),
                PrivateNumbers.name,
                lambda: PrivateNumbers(clean_recipe.private_numbers),
            ),
            _Entry(clean_recipe.privacy, Privacy.name, Privacy),
            _Entry(clean_recipe.character_dedup, Repeats.name, lambda: Repeats.from_recipe(clean_recipe)),
            _Entry(
                clean_recipe.privacy and clean_recipe.character_dedup,
                _PRIVACY_REPEATS[0],
                Privacy,
                only_changed=True,
            ),
        ]
    )


def stages_after_paragraph_dedup(clean_recipe: CleanRecipe) -> list[Stage]:
    """Return the filters between the paragraph deduplication and the last document deduplication."""
    user_filters = _load_user_filters(clean_recipe)
    bad_words = clean_recipe.bad_words
    quality_model = clean_recipe.quality_model
    removes_parts = clean_recipe.min_words > 0 or clean_recipe.paragraph_dedup or bool(user_filters)
    return [
        *_switched_on(
            [
                _Entry(
                    clean_recipe.min_words > 0,
                    ShortSentences.name,
                    lambda: ShortSentences.from_recipe(clean_recipe),
                )
            ]
        ),
        *user_filters,
        *_switched_on(
            [
                _Entry(
                    clean_recipe.privacy and removes_parts, _PRIVACY_REPEATS[1], Privacy, only_changed=True
                ),
                _Entry(
                    bool(clean_recipe.languages), Languages.name, lambda: Languages.from_recipe(clean_recipe)
                ),
                *(_Entry(getattr(clean_recipe, rules.name), rules.name, rules) for rules in _QUALITY),
                # A citation that goes may join two halves of a number.
                _Entry(
                    clean_recipe.privacy and clean_recipe.c4, _PRIVACY_REPEATS[2], Privacy, only_changed=True
                ),
            ]
        ),
        *([Stage(BadWords.name, BadWords.from_recipe(bad_words))] if bad_words else []),
        *([Stage(ModelScore.name, ModelScore.from_recipe(quality_model))] if quality_model else []),
    ]


def stage_names(clean_recipe: CleanRecipe) -> list[str]:
    """Return the names of all stages that a recipe switches on, in order.

    Documents are deduplicated first, on the raw text, as the paper does and to save the work on copies; and
    again last if any other stage is on, because cleaning makes documents equal that differed in a link or a
    space.
    """
    names_before = [stage.name for stage in stages_before_paragraph_dedup(clean_recipe)]
    names_after = [stage.name for stage in stages_after_paragraph_dedup(clean_recipe)]
    paragraph_dedup = [PARAGRAPH_DEDUP] if clean_recipe.paragraph_dedup else []
    names_between = [*names_before, *paragraph_dedup, *names_after]
    near_dedup = [NEAR_DEDUP] if clean_recipe.near_dedup else []
    if not clean_recipe.document_dedup:
        return [*names_between, *near_dedup]
    again = [DOCUMENT_DEDUP_AGAIN] if names_between else []
    return [DOCUMENT_DEDUP, *names_between, *again, *near_dedup]


def order_of_stages(recipes: Iterable[CleanRecipe]) -> list[str]:
    """Return the names of all stages of several recipes, in the order of the chain."""
    recipes = list(recipes)
    user_filters = [user_filter for recipe in recipes for user_filter in recipe.filters]
    switches: dict[str, object] = dict.fromkeys((rules.name for rules in _QUALITY), True)
    switches["normalise"] = tuple(NORMALISATIONS)
    switches |= {"filters": user_filters, "near_dedup": True, "private_numbers": PrivateNumbers.rules}
    everything = CleanRecipe.model_validate(switches)
    chain = [*stage_names(everything)]
    for name in (BadWords.name, ModelScore.name):  # both need a file, so `everything` has neither
        chain.insert(chain.index(DOCUMENT_DEDUP_AGAIN), name)
    used = {name for recipe in recipes for name in stage_names(recipe)}
    return [name for name in dict.fromkeys(chain) if name in used]


def _load_user_filters(clean_recipe: CleanRecipe) -> list[Stage]:
    """Return the recipe's own filters as stages.

    Raises:
        UserError: two have one name, or one has the name of another stage.
    """
    stages: list[Stage] = []
    names = {DOCUMENT_DEDUP, PARAGRAPH_DEDUP, DOCUMENT_DEDUP_AGAIN, NEAR_DEDUP, *_PRIVACY_REPEATS}
    names |= {INPUT, UNFILTERED, *(shipped.name for shipped in _SHIPPED)}
    for user_filter in map(load_filter, clean_recipe.filters):
        if user_filter.name in names:
            raise UserError(f"clean.filters: two stages are called {user_filter.name!r}; rename the filter")
        names.add(user_filter.name)
        stages.append(Stage(user_filter.name, user_filter))
    return stages


def _switched_on(entries: list[_Entry]) -> list[Stage]:
    return [Stage(entry.name, entry.make(), entry.only_changed) for entry in entries if entry.is_on]
