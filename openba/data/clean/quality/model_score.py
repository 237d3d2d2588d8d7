"""Filter of documents by the score of a model of the user's."""

from __future__ import annotations

import numpy as np

from openba.data.clean.edit_matrix import remove_rows
from openba.data.clean.filter import Filter
from openba.data.clean.text_arrays import Texts
from openba.data.quality_model import Scorer, load_scorer
from openba.recipes.clean import QualityModelRecipe


class ModelScore(Filter):
    """Remove documents whose score is below a threshold."""

    name = "quality_model"
    rules = ("low_score",)

    def __init__(self, scores: Scorer, least_score: float) -> None:
        self._scores = scores
        self._least_score = least_score

    @classmethod
    def from_recipe(cls, recipe: QualityModelRecipe) -> ModelScore:
        """Load the model that the recipe names; see `load_scorer` for what is refused."""
        return cls(load_scorer(recipe), recipe.min)

    def find(self, texts: Texts) -> np.ndarray:
        """Return the edits of a batch; see `Filter.find`."""
        return remove_rows(texts, np.flatnonzero(self._scores(texts) < self._least_score), 1)
