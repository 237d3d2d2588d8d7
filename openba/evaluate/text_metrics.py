"""Scores of free text: BLEU, chrF, ROUGE, exact and word overlap, and the diversity figures of Table 10.

Owns how Chinese text reaches the libraries. sacreBLEU and rouge-score compute; distinct-n and lexical
repetition have no library and are counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sacrebleu.metrics import BLEU, CHRF

from openba.evaluate.answers import Answers, CorpusScore

_IDEOGRAPHS_BEYOND_SACREBLEU = re.compile("[\u4db6-\u4dbf\u9fbc-\u9fff\U00020000-\U0003ffff]")


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


def _comparable(text: str) -> str:
    """The same, and an option's letter without its brackets: `(B)` and `B` are one answer."""
    return re.sub(r"^\(([A-Z])\)$", r"\1", plain(text))


def exact_match(answers: Answers) -> list[float]:
    """1 where the answer is one of the right ones, but for width, spaces and brackets around one letter."""
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [
        float(_comparable(text) in {_comparable(right) for right in references}) for text, references in pairs
    ]


def normalised_match(answers: Answers) -> list[float]:
    """1 where the answer is one of the right ones by SQuAD's and ReCoRD's official normalisation.

    Without case, punctuation, articles and repeated spaces; in Chinese the sequence of characters counts.
    """
    words = _words_of(answers)
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [float(words(text) in [words(right) for right in references]) for text, references in pairs]


def token_f1(answers: Answers) -> list[float]:
    """Overlap of words with the best right answer, as SQuAD and ReCoRD count it (no articles, no case).

    In Chinese a Han character is a word, as DRCD and CMRC count it.
    """
    words = _words_of(answers)
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [
        max(_overlap(Counter(words(text)), Counter(words(right))) for right in references)
        for text, references in pairs
    ]


def rouge(kind: str, answers: Answers) -> list[float]:
    """F-measure of `rouge1`, `rouge2` or `rougeL` with the best right answer."""
    scorer = RougeScorer([kind], tokenizer=HanTokenizer() if answers.language == "zh" else None)
    pairs = zip(answers.predictions, answers.references, strict=True)
    return [scorer.score_multi(references, text)[kind].fmeasure for text, references in pairs]


def bleu(order: int, answers: Answers) -> CorpusScore:
    """Corpus BLEU of n-grams up to `order`, with sacreBLEU's signature."""
    chinese = answers.language == "zh"
    metric = BLEU(tokenize="zh" if chinese else "13a", max_ngram_order=order)
    return _sacrebleu(
        "bleu" if order == 4 else f"bleu_{order}", metric, answers, _separated if chinese else str
    )


def chrf(answers: Answers) -> CorpusScore:
    """Corpus chrF2; characters need no tokenizer."""
    return _sacrebleu("chrf", CHRF(), answers, str)


def _sacrebleu(
    name: str, metric: BLEU | CHRF, answers: Answers, prepared: Callable[[str], str]
) -> CorpusScore:
    predictions = [prepared(text) for text in answers.predictions]
    references = [[prepared(text) for text in row] for row in answers.references]
    statistics = np.array(metric._extract_corpus_statistics(predictions, _streams(references)))
    return CorpusScore(
        lambda rows: float(metric._compute_score_from_stats(statistics[rows].sum(0).tolist()).score),
        beside={f"{name}_signature": str(metric.get_signature())},
    )


def _separated(text: str) -> str:
    """Spaces around the ideographs that sacreBLEU's tokenizer `zh` takes for letters of one word.

    Its table ends with Unicode 4.1 and misspells the supplementary planes (sacrebleu issue 298).
    """
    return _IDEOGRAPHS_BEYOND_SACREBLEU.sub(r" \g<0> ", text)


def distinct_2(answers: Answers) -> CorpusScore:
    """Different pairs of neighbouring words as share of all pairs (Distinct-2)."""
    pairs = [list(_ngrams(words, 2)) for words in _tokenised(answers)]

    def share(rows: np.ndarray) -> float:
        chosen = [pair for row in rows for pair in pairs[row]]
        return 100 * len(set(chosen)) / len(chosen) if chosen else 0.0

    return CorpusScore(share, resamples=200)


def repetition_2(answers: Answers) -> list[float]:
    """1 where some four neighbouring words stand twice or more in the answer (LR-2; lower is better)."""
    return [float(max(Counter(_ngrams(words, 4)).values(), default=0) >= 2) for words in _tokenised(answers)]


def _streams(references: Sequence[Sequence[str]]) -> Any:
    """References as sacreBLEU wants them, a list for each first, second, ... one; it reads None as none."""
    most = max(map(len, references))
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def _tokenised(answers: Answers) -> Iterable[list[str]]:
    tokenizer = HanTokenizer() if answers.language == "zh" else DefaultTokenizer()
    return [tokenizer.tokenize(text) for text in answers.predictions]


def _ngrams(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(size)), strict=False)


def _words_of(answers: Answers) -> Callable[[str], list[str]]:
    return HanTokenizer().tokenize if answers.language == "zh" else _english_words


def _english_words(text: str) -> list[str]:
    lowered = re.sub(r"[^\w\s]", "", text.lower())
    return re.sub(r"\b(a|an|the)\b", " ", lowered).split()


def _overlap(given: Counter[str], right: Counter[str]) -> float:
    common = (given & right).total()
    if not given or not right:
        return float(given == right)
    return 2 * common / (given.total() + right.total())
