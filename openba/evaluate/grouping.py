"""Averages of category scores: a benchmark's subjects into its fields, and all of them into one score.

Owns weights, standard errors, and the report of subjects that are missing or in no group. Scores of
categories are computed in `run.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

Average = Literal["item", "category"]


@dataclass(frozen=True)
class CategoryScore:
    """Score of one category, in percent."""

    score: float
    items: int
    stderr: float = 0.0


class GroupScore(TypedDict):
    """Score of a group in a result; a group without any item has no `score` and no `stderr`."""

    n: int
    """Number of items."""
    categories: int
    """Number of categories that have items."""
    missing: NotRequired[list[str]]
    """Categories of the group without an item."""
    ungrouped: NotRequired[list[str]]
    """Of `all`: categories in no group."""
    score: NotRequired[float]
    stderr: NotRequired[float]


def average_groups(
    categories: Mapping[str, CategoryScore], groups: Mapping[str, Sequence[str]], average: Average
) -> dict[str, GroupScore]:
    """Return the mean of each group's categories, and of all categories under `all`.

    Args:
        categories: category -> its score.
        groups: group -> its categories; one may be in several, as CMMLU's China-specific ones.
        average: `item` weighs a category by its items (MMLU and CMMLU, release), `category` weighs all
            alike (C-Eval, BBH).
    """
    group_scores = {name: _average(categories, members, average) for name, members in groups.items()}
    group_scores["all"] = _average(categories, list(categories), average)
    grouped_categories = {category for members in groups.values() for category in members}
    # A subject in no group counts in `all` only, so it is reported.
    if groups and (ungrouped := sorted(categories.keys() - grouped_categories)):
        group_scores["all"]["ungrouped"] = ungrouped
    return group_scores


def _average(categories: Mapping[str, CategoryScore], members: Sequence[str], average: Average) -> GroupScore:
    category_scores = [categories[name] for name in members if name in categories]
    group_score: GroupScore = {
        "n": sum(category.items for category in category_scores),
        "categories": len(category_scores),
    }
    if missing := sorted(set(members) - categories.keys()):
        group_score["missing"] = missing
    if not category_scores:
        return group_score
    weights = [category.items if average == "item" else 1 for category in category_scores]
    total_weight = sum(weights)
    shares = [weight / total_weight for weight in weights]
    mean_score = sum(share * one.score for share, one in zip(shares, category_scores, strict=True))
    # Categories are fixed, items are a sample: the error of a sum of independent means.
    variance = sum((share * one.stderr) ** 2 for share, one in zip(shares, category_scores, strict=True))
    group_score["score"] = round(mean_score, 4)
    group_score["stderr"] = round(variance**0.5, 4)
    return group_score
