"""Models that score texts: a linear one over hashed n-grams, and fastText classifiers.

Owns the two file forms and how a score follows from a text. `fit` trains the linear form from two sets of
texts; where a score decides is `ScoreRange` (which records a source reads) and the filter `quality_model`.

The linear form is fastText's idea in its smallest size (Joulin et al., "Bag of tricks for efficient text
classification", 2017): the mean weight of a text's n-grams, through a sigmoid. Units are those of the near
duplicates, a Han character or a word, so the same model reads Chinese and English.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from openba.data.clean.near_duplicates import shingles
from openba.data.clean.text_arrays import Texts, decode
from openba.errors import UserError
from openba.recipes.clean import ScoringModelRecipe, require_same_contents

_FORM = "openba-quality-1"
_LONGEST_NGRAM = 2
_BUCKETS = 2**18
"""1 MiB of weights; rare n-grams that share one weight do little harm to a mean."""
_INVERSE_PENALTY = 1e5
"""Large, since a text's features are shares of its n-grams, of some thousandths each."""

Scorer = Callable[[Texts], np.ndarray]
"""Scores of a batch of texts, float64 `[texts]`."""


class LinearModel(NamedTuple):
    """Weights of hashed n-grams of one and two units."""

    weights: np.ndarray
    """float32 `[buckets]`."""
    bias: float

    def scores(self, texts: Texts) -> np.ndarray:
        """Return the scores of a batch, from 0 to 1; a text without units has the bias's."""
        logits = np.full(len(texts.offsets) - 1, self.bias)
        weight_sums = np.zeros(len(logits))
        ngram_counts = np.zeros(len(logits), np.int64)
        for units in range(1, _LONGEST_NGRAM + 1):
            ngrams = shingles(texts, units)
            sums = np.concatenate(
                [[0.0], np.cumsum(self.weights[ngrams.hashes % len(self.weights)], dtype=float)]
            )
            weight_sums += np.diff(sums[ngrams.offsets])
            ngram_counts += np.diff(ngrams.offsets)
        return 1 / (1 + np.exp(-(logits + weight_sums / np.maximum(ngram_counts, 1))))

    def save(self, path: Path) -> None:
        """Write a `.safetensors` file."""
        from safetensors.numpy import save_file

        tensors = {"weights": self.weights, "bias": np.array([self.bias])}
        save_file(tensors, path, metadata={"form": _FORM})


def fit(good: Sequence[str], bad: Sequence[str]) -> LinearModel:
    """Train a linear model that gives good texts a score near 1 and bad ones near 0 (scikit-learn)."""
    from sklearn.linear_model import LogisticRegression

    labels = [1] * len(good) + [0] * len(bad)
    classifier = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000)
    classifier.fit(_ngram_shares([*good, *bad]), labels)
    return LinearModel(classifier.coef_[0].astype(np.float32), float(classifier.intercept_[0]))


def _ngram_shares(texts: Sequence[str]) -> csr_array:
    """Return the share of each bucket in the n-grams of each text, float64 `[texts, buckets]`."""
    batch, _ = decode(pa.array(texts, pa.large_string()))
    by_length = [shingles(batch, units) for units in range(1, _LONGEST_NGRAM + 1)]
    rows = np.concatenate([np.repeat(np.arange(len(texts)), np.diff(n.offsets)) for n in by_length])
    buckets = np.concatenate([n.hashes % _BUCKETS for n in by_length]).astype(np.int64)
    ngram_counts = np.bincount(rows, minlength=len(texts))
    # Equal buckets of a text are added up when the matrix is made.
    return csr_array((1 / ngram_counts[rows], (rows, buckets)), shape=(len(texts), _BUCKETS))


def load_scorer(recipe: ScoringModelRecipe) -> Scorer:
    """Return the scores of a model file.

    Raises:
        UserError: the file cannot be read or is another one than where the pipeline was started, or what
            reads it is not installed.
    """
    path = Path(recipe.file)
    require_same_contents(recipe, recipe.file)
    return _fasttext_scorer(path, recipe.label) if recipe.label is not None else _linear_model(path).scores


def _linear_model(path: Path) -> LinearModel:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("form") != _FORM:
                raise UserError(
                    f"{path}: not of the form {_FORM}; openba.data.quality_model.fit makes such models"
                )
            return LinearModel(file.get_tensor("weights"), float(file.get_tensor("bias")[0]))
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _fasttext_scorer(path: Path, label: str) -> Scorer:
    try:
        import fasttext
    except ImportError:
        raise UserError(
            f"{path}: fastText models are read by the package fasttext; pip install fasttext-numpy2-wheel"
        ) from None
    try:
        model = fasttext.load_model(str(path))
    except ValueError as error:
        raise UserError(f"{path}: not a readable fastText model ({error})") from None
    if label not in model.get_labels():
        raise UserError(
            f"{path}: no label {label!r}; there are: {', '.join(sorted(model.get_labels())[:20])}"
        )

    def scores(texts: Texts) -> np.ndarray:
        # `f` is the compiled model: `predict` around it fails with NumPy 2. A text is one line.
        lines = (texts.text(row).replace("\n", " ") + "\n" for row in range(len(texts.offsets) - 1))
        predictions = (
            {name: share for share, name in model.f.predict(line, -1, 0.0, "strict")} for line in lines
        )
        return np.array([prediction.get(label, 0.0) for prediction in predictions])

    return scores
