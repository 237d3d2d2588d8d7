"""Scores of categories become scores of groups: a benchmark's subjects its fields, and all of them one.

Owns weights, standard errors and what is said of subjects that are missing or that no group names. Scores
of categories come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Average = Literal["item", "category"]


@dataclass(frozen=True)
class Score:
    """Of one category, in percent."""

    score: float
    items: int
    stderr: float = 0.0


def grouped(
    categories: Mapping[str, Score], groups: Mapping[str, Sequence[str]], average: Average
) -> dict[str, dict[str, Any]]:
    """Mean of each group's categories, and of all under `all`.

    Args:
        categories: category -> its score.
        groups: group -> its categories; one may be in several, as CMMLU's China-specific ones.
        average: `item` weighs a category by its items (MMLU and CMMLU, release), `category` weighs all
            alike (C-Eval, BBH).

    Returns:
        For each group `score`, `stderr`, `n` (items), `categories` (how many), and where there are any
        `missing`, its categories without an item. A group without any item has no score.
        `all` has `ungrouped`, categories that no group names, if there are groups.
    """
    results = {name: _mean(categories, members, average) for name, members in groups.items()}
    results["all"] = _mean(categories, list(categories), average)
    named = {category for members in groups.values() for category in members}
    if groups and (odd := sorted(categories.keys() - named)):
        results["all"]["ungrouped"] = odd
    return results


def _mean(categories: Mapping[str, Score], members: Sequence[str], average: Average) -> dict[str, Any]:
    found = [categories[name] for name in members if name in categories]
    result: dict[str, Any] = {"n": sum(one.items for one in found), "categories": len(found)}
    if missing := sorted(set(members) - categories.keys()):
        result["missing"] = missing
    if not found:
        return result
    weights = [one.items if average == "item" else 1 for one in found]
    whole = sum(weights)
    shares = [(weight / whole, one) for weight, one in zip(weights, found, strict=True)]
    result["score"] = round(sum(share * one.score for share, one in shares), 4)
    # Categories are taken as they are, items as drawn: errors of independent means.
    result["stderr"] = round(sum((share * one.stderr) ** 2 for share, one in shares) ** 0.5, 4)
    return result
