"""Scores of free text: BLEU, chrF, ROUGE, exact and word overlap, and the diversity figures of Table 10.

Owns how Chinese text reaches the libraries. sacreBLEU and rouge-score compute; distinct-n and lexical
repetition have no library and are counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sacrebleu.metrics import BLEU, CHRF

from openba.evaluate.answers import BOOTSTRAP, Answers, Scores, resampled


class HanTokenizer(Tokenizer):
    """Chinese for ROUGE: a Han character is a word, as is a run of Latin letters or digits.

    rouge-score's own tokenizer keeps ASCII only, which makes identical Chinese sentences score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        """Words in order; punctuation counts as little as in the English tokenizer."""
        return re.findall(r"[a-z0-9]+|[^\W_]", unicodedata.normalize("NFKC", text).lower())


def plain(text: str) -> str:
    """The text in NFKC with single spaces: what a tokenizer may change without changing the answer."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def exact_match(answers: Answers) -> list[float]:
    """1 where the answer is one of the right ones, but for width and spaces."""
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [float(plain(text) in {plain(right) for right in references}) for text, references in pairs]


def token_f1(answers: Answers) -> list[float]:
    """Overlap of words with the best right answer, as SQuAD and ReCoRD count it (no articles, no case)."""
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [max(_overlap(_words(text), _words(right)) for right in references) for text, references in pairs]


def rouge(kind: str, answers: Answers) -> list[float]:
    """F-measure of `rouge1`, `rouge2` or `rougeL` with the best right answer."""
    scorer = RougeScorer([kind], tokenizer=HanTokenizer() if answers.language == "zh" else None)
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [scorer.score_multi(references, text)[kind].fmeasure for text, references in pairs]


def bleu(name: str, order: int, answers: Answers) -> Scores:
    """Corpus BLEU of n-grams up to `order`, with sacreBLEU's signature."""
    metric = BLEU(tokenize="zh" if answers.language == "zh" else "13a", max_ngram_order=order)
    result = metric.corpus_score(answers.predictions, _streams(answers), n_bootstrap=BOOTSTRAP)
    return {
        name: result.score,
        f"{name}_stderr": float(result._ci) / 1.96,  # half the width of the 95 % interval
        f"{name}_signature": str(metric.get_signature()),
    }


def chrf(answers: Answers) -> Scores:
    """Corpus chrF2; characters need no tokenizer."""
    # No bootstrap: sacrebleu 2.6.0 mixes float and numpy.float32 there as soon as one resampling
    # scores 0, and statistics.mean refuses the mixture.
    metric = CHRF()
    score = metric.corpus_score(answers.predictions, _streams(answers)).score
    return {"chrf": float(score), "chrf_signature": str(metric.get_signature())}


def distinct_2(answers: Answers) -> Scores:
    """Different pairs of neighbouring words as share of all pairs (Distinct-2)."""
    pairs = [list(_ngrams(words, 2)) for words in _tokenised(answers)]

    def share(rows: np.ndarray) -> float:
        chosen = [pair for row in rows for pair in pairs[row]]
        return 100 * len(set(chosen)) / len(chosen) if chosen else 0.0

    items = len(pairs)
    return {"distinct_2": share(np.arange(items)), "distinct_2_stderr": resampled(share, items, 200)}


def repetition_2(answers: Answers) -> list[float]:
    """1 where some four neighbouring words stand twice or more in the answer (LR-2; lower is better)."""
    return [float(max(Counter(_ngrams(words, 4)).values(), default=0) >= 2) for words in _tokenised(answers)]


def _streams(answers: Answers) -> Any:
    """References as sacreBLEU wants them, a list for each first, second, ... one; it reads None as none."""
    most = max(map(len, answers.references))
    return [[row[i] if i < len(row) else None for row in answers.references] for i in range(most)]


def _tokenised(answers: Answers) -> Iterable[list[str]]:
    tokenizer = HanTokenizer() if answers.language == "zh" else DefaultTokenizer()
    return [tokenizer.tokenize(text) for text in answers.predictions]


def _ngrams(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(size)), strict=False)


def _words(text: str) -> Counter[str]:
    lowered = re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]", "", text.lower()))
    return Counter(lowered.split())


def _overlap(found: Counter[str], right: Counter[str]) -> float:
    common = (found & right).total()
    if not found or not right:
        return float(found == right)
    return 2 * common / (found.total() + right.total())
