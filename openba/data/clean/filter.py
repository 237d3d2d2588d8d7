"""Base class of filters: which spans of a text go, and by which rule.

A filter is one class with its name, its rules and its search. One of your own is a class in any module that
Python can import; a pipeline or a file of `configs/clean` names it:

    filters:
      - filter: my_package.my_filters:Shouting
        options: {largest_share: 0.7}

It runs after the filter `min_words`, in the order of the list. Its name, version and options enter the
fingerprint of the step `clean`.
"""

from __future__ import annotations

import importlib
from abc import ABC
from typing import ClassVar, NamedTuple

import numpy as np

from openba.data.clean.edit_matrix import from_edits
from openba.data.clean.edits import Edit
from openba.data.clean.text_arrays import Texts
from openba.errors import UserError
from openba.recipes.clean import FilterRecipe


class Filter(ABC):
    """A filter that decides on each text alone, without looking at other documents.

    Override `find_in_text`, or `find` where a compiled search over the batch is worth it.
    """

    name: ClassVar[str]
    """Name of the stage in the funnel, in removed.parquet and in the report."""
    rules: ClassVar[tuple[str, ...]]
    """Reasons for a removal, as removed.parquet and the report give them."""
    version: ClassVar[str] = "1"
    """Raise it when the filter finds something else than before: what it has cleaned is then built anew."""

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch as a matrix (`edit_matrix`), in order and without overlap."""
        rows = range(len(texts.offsets) - 1)
        return from_edits(texts, ((row, self.find_in_text(texts.text(row))) for row in rows), self.rules)

    def find_in_text(self, text: str) -> list[Edit]:
        """Return the edits of one text, in order and without overlap."""
        raise NotImplementedError(f"{type(self).__name__}: override find_in_text or find")


class Stage(NamedTuple):
    """One run of a filter within the chain."""

    name: str
    filter: Filter
    only_changed: bool = False
    """Search only texts that changed since the filter's last run in the chain."""


def load_filter(recipe: FilterRecipe) -> Filter:
    """Import a filter of the user's own and make it with the options of its recipe.

    Raises:
        UserError: the module lacks such a filter, it has another version than the recipe was read with, or it
            refuses the options.
    """
    module_name, _, class_name = recipe.filter.partition(":")
    filter_class = getattr(importlib.import_module(module_name), class_name)
    if not (isinstance(filter_class, type) and issubclass(filter_class, Filter)):
        raise UserError(f"clean.filters: {recipe.filter} is not derived from openba.data.clean.filter.Filter")
    if str(filter_class.version) != recipe.version:
        raise UserError(
            f"clean.filters: {recipe.filter} has version {filter_class.version} here and {recipe.version} "
            "where the pipeline was started; install the same package on all machines"
        )
    try:
        return filter_class(**recipe.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"clean.filters: {recipe.filter} refuses its options: {error}") from None
