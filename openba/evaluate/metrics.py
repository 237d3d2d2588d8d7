"""Scores of predictions against references, from the field's libraries, in percent.

Owns which library computes what and how Chinese text and entity lists reach it. It generates
nothing and reads no files. Program text is parsed, never run.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from nervaluate.entities import Entity as Span
from nervaluate.strategies import StrictEvaluation
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score

from openba.data.entities import parse_entities
from openba.errors import UserError
from openba.recipes.evaluate import Metric

BOOTSTRAP = 1000
"""Resamples of the items behind the standard error of a corpus score (sacreBLEU's default)."""
_SEED = 12345  # sacreBLEU's own

Language = Literal["zh", "en"]
Scores = dict[str, float | str]


def score(
    metrics: Sequence[Metric], predictions: Sequence[str], references: Sequence[str], language: Language
) -> Scores:
    """Score predictions, item by item in the order of the references.

    Returns:
        For each metric its value (0 to 100) and `METRIC_stderr`: of the mean where the score is a
        mean over items, from a bootstrap over items otherwise. `bleu_signature` and
        `chrf_signature` say how sacreBLEU computed them, `entity_f1_unreadable` is the share of
        predictions that are no entity list, `n` the number of items.

    Raises:
        UserError: there are no items.
        ValueError: the lengths differ.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if not references:
        raise UserError("nothing to score: the benchmark has no held-out records; raise its task's `heldout`")
    scores: Scores = {"n": len(references)}
    for metric in metrics:
        scores |= _METRICS[metric](list(predictions), list(references), language)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in scores.items()}


class HanTokenizer(Tokenizer):
    """Chinese for ROUGE: a Han character is a word, as is a run of Latin letters or digits.

    rouge-score's own tokenizer keeps ASCII only, which makes identical Chinese sentences score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        """Words in order; punctuation counts as little as in the English tokenizer."""
        return re.findall(r"[a-z0-9]+|[^\W_]", unicodedata.normalize("NFKC", text).lower())


def _accuracy(predictions: list[str], references: list[str], language: Language) -> Scores:
    del language
    share = float(accuracy_score(references, predictions))
    stderr = (share * (1 - share) / max(len(references) - 1, 1)) ** 0.5
    return {"accuracy": 100 * share, "accuracy_stderr": 100 * stderr}


def _exact_match(predictions: list[str], references: list[str], language: Language) -> Scores:
    del language
    return _mean(
        "exact_match", [_plain(p) == _plain(r) for p, r in zip(predictions, references, strict=True)]
    )


def _python_syntax(predictions: list[str], references: list[str], language: Language) -> Scores:
    del references, language
    return _mean("python_syntax", [_parses(text) for text in predictions])


def _rouge_l(predictions: list[str], references: list[str], language: Language) -> Scores:
    scorer = RougeScorer(["rougeL"], tokenizer=HanTokenizer() if language == "zh" else None)
    pairs = zip(predictions, references, strict=True)
    return _mean("rouge_l", [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs])


def _bleu(predictions: list[str], references: list[str], language: Language) -> Scores:
    metric = BLEU(tokenize="zh" if language == "zh" else "13a")
    result = metric.corpus_score(predictions, [references], n_bootstrap=BOOTSTRAP)
    return {
        "bleu": result.score,
        "bleu_stderr": float(result._ci) / 1.96,  # half the width of the 95 % interval
        "bleu_signature": str(metric.get_signature()),
    }


def _chrf(predictions: list[str], references: list[str], language: Language) -> Scores:
    del language  # characters need no tokenizer
    # No bootstrap: sacrebleu 2.6.0 mixes float and numpy.float32 there as soon as one resampling
    # scores 0, and statistics.mean refuses the mixture.
    metric = CHRF()
    score = metric.corpus_score(predictions, [references]).score
    return {"chrf": float(score), "chrf_signature": str(metric.get_signature())}


def _entity_f1(predictions: list[str], references: list[str], language: Language) -> Scores:
    """Micro-averaged strict F1: an entity is right if text and type are (paper section 6.5, Table 15).

    The notation has no positions, so equal entities are told apart by their count: the second
    `[Rome](city)` of a sentence needs a second one in the answer. Width and case of characters:
    width is normalised (mT5's tokenizer writes no full-width forms), case is not. An answer that
    is no entity list counts as an empty one.
    """
    del language
    answers = [_read(text) for text in predictions]
    strict = StrictEvaluation()
    counts = []
    for answer, reference in zip(answers, references, strict=True):
        places: dict[tuple[str, str, int], int] = {}
        result, _ = strict.evaluate(
            _spans(parse_entities(reference), places), _spans(answer or [], places), []
        )
        counts.append((result.correct, result.possible, result.actual))
    table = np.array(counts, dtype=np.float64)
    drawn = np.random.default_rng(_SEED).integers(len(table), size=(BOOTSTRAP, len(table)))
    return {
        "entity_f1": _f1(table.sum(0)),
        "entity_f1_stderr": float(np.std([_f1(table[rows].sum(0)) for rows in drawn], ddof=1)),
        "entity_f1_unreadable": 100 * sum(answer is None for answer in answers) / len(answers),
    }


_METRICS: dict[Metric, Callable[[list[str], list[str], Language], Scores]] = {
    "accuracy": _accuracy,
    "bleu": _bleu,
    "chrf": _chrf,
    "rouge_l": _rouge_l,
    "entity_f1": _entity_f1,
    "exact_match": _exact_match,
    "python_syntax": _python_syntax,
}


def _mean(name: str, values: Sequence[float]) -> Scores:
    """Mean over items and its standard error, in percent."""
    array = 100 * np.asarray(values, dtype=np.float64)
    stderr = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return {name: float(array.mean()), f"{name}_stderr": float(stderr)}


def _plain(text: str) -> str:
    """The text in NFKC with single spaces: what a tokenizer may change without changing the answer."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _parses(text: str) -> bool:
    if not text.strip():  # Python accepts an empty program; an empty answer is none
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a doubtful escape is still a program
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: absurd nesting
        return False
    return True


def _read(text: str) -> list[tuple[str, str]] | None:
    try:
        return parse_entities(text)
    except ValueError:
        return None


def _spans(entities: list[tuple[str, str]], places: dict[tuple[str, str, int], int]) -> list[Span]:
    """Each different entity, and each further mention of it, at a place of its own."""
    seen: Counter[tuple[str, str]] = Counter()
    spans = []
    for text, kind in ((_plain(text), _plain(kind)) for text, kind in entities):
        place = places.setdefault((text, kind, seen[text, kind]), len(places))
        seen[text, kind] += 1
        spans.append(Span(kind, place, place))
    return spans


def _f1(counts: np.ndarray) -> float:
    """Of correct, possible, actual; nothing to find and nothing found is 100."""
    correct, possible, actual = counts
    return 100.0 if possible + actual == 0 else float(200 * correct / (possible + actual))
