"""Scores of free text: BLEU, chrF, ROUGE, exact match, word overlap, and the diversity figures of Table 10.

Owns the preparation of Chinese text for the libraries. sacreBLEU and rouge-score compute; distinct-n and
lexical repetition have no library and are counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sacrebleu.metrics import BLEU, CHRF

from openba.evaluate.answers import Answers, CorpusScore

_IDEOGRAPHS_BEYOND_SACREBLEU = re.compile("[\u4db6-\u4dbf\u9fbc-\u9fff\U00020000-\U0003ffff]")


class HanTokenizer(Tokenizer):
    """Tokenizer of Chinese for ROUGE: a Han character is a word, as is a run of Latin letters or digits.

    rouge-score's own tokenizer keeps ASCII only, which makes identical Chinese sentences score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return words in order, without punctuation, as the English tokenizer does."""
        return re.findall(r"[a-z0-9]+|[^\W_]", unicodedata.normalize("NFKC", text).lower())


def normalise_width(text: str) -> str:
    """Return the text in NFKC with single spaces, since tokenizers change width and runs of spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _normalise_option(text: str) -> str:
    """Return the same, with an option's letter without its brackets: `(B)` and `B` are one answer."""
    return re.sub(r"^\(([A-Z])\)$", r"\1", normalise_width(text))


def _answer_pairs(answers: Answers) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each prediction with its references."""
    return zip(answers.predictions, answers.references, strict=True)


def exact_match(answers: Answers) -> list[float]:
    """Return 1 where the answer equals a reference, apart from width, spaces and brackets of one letter."""
    return [
        float(_normalise_option(prediction) in {_normalise_option(reference) for reference in references})
        for prediction, references in _answer_pairs(answers)
    ]


def normalised_match(answers: Answers) -> list[float]:
    """Return 1 where the answer equals a reference by SQuAD's and ReCoRD's official normalisation.

    Without case, punctuation, articles and repeated spaces; in Chinese the sequence of characters counts.
    """
    split_words = _word_splitter(answers)
    return [
        float(split_words(prediction) in [split_words(reference) for reference in references])
        for prediction, references in _answer_pairs(answers)
    ]


def token_f1(answers: Answers) -> list[float]:
    """Return word overlap with the best reference, as SQuAD and ReCoRD count it (no articles, no case).

    In Chinese a Han character is a word, as DRCD and CMRC count it.
    """
    split_words = _word_splitter(answers)
    scores = []
    for prediction, references in _answer_pairs(answers):
        predicted_words = Counter(split_words(prediction))
        scores.append(max(_overlap_f1(predicted_words, Counter(split_words(text))) for text in references))
    return scores


def rouge(variant: str, answers: Answers) -> list[float]:
    """F-measure of `rouge1`, `rouge2` or `rougeL` with the best reference."""
    scorer = RougeScorer([variant], tokenizer=HanTokenizer() if answers.language == "zh" else None)
    return [
        scorer.score_multi(references, prediction)[variant].fmeasure
        for prediction, references in _answer_pairs(answers)
    ]


def bleu(max_order: int, answers: Answers) -> CorpusScore:
    """Corpus BLEU of n-grams up to `max_order`, with sacreBLEU's signature."""
    # sacreBLEU's tokenizers: 13a is the one of WMT and its default, `zh` splits Chinese characters.
    is_chinese = answers.language == "zh"
    metric = BLEU(tokenize="zh" if is_chinese else "13a", max_ngram_order=max_order)
    metric_name = "bleu" if max_order == 4 else f"bleu_{max_order}"
    return _sacrebleu_score(metric_name, metric, answers, _separate_ideographs if is_chinese else str)


def chrf(answers: Answers) -> CorpusScore:
    """Corpus chrF2; characters need no tokenizer."""
    return _sacrebleu_score("chrf", CHRF(), answers, str)


def _sacrebleu_score(
    metric_name: str, metric: BLEU | CHRF, answers: Answers, prepare: Callable[[str], str]
) -> CorpusScore:
    predictions = [prepare(text) for text in answers.predictions]
    references = [[prepare(text) for text in item_references] for item_references in answers.references]
    # The counts of each item once, so that a bootstrap's resample only adds them up.
    streams = _reference_streams(references)
    # sacreBLEU reads None as a missing reference, though its annotation does not say so.
    statistics = np.array(metric._extract_corpus_statistics(predictions, streams))  # type: ignore[arg-type]
    return CorpusScore(
        lambda rows: float(metric._compute_score_from_stats(statistics[rows].sum(0).tolist()).score),
        extra_scores={f"{metric_name}_signature": str(metric.get_signature())},
    )


def _separate_ideographs(text: str) -> str:
    """Separate by spaces the ideographs that sacreBLEU's tokenizer `zh` takes for letters of one word.

    Its table ends with Unicode 4.1 and misspells the supplementary planes (sacrebleu issue 298).
    """
    return _IDEOGRAPHS_BEYOND_SACREBLEU.sub(r" \g<0> ", text)


def distinct_2(answers: Answers) -> CorpusScore:
    """Distinct-2: number of different word bigrams divided by the number of bigrams."""
    item_bigrams = [list(_ngrams(words, 2)) for words in _tokenize_predictions(answers)]

    def distinct_share(rows: np.ndarray) -> float:
        bigrams = [bigram for row in rows for bigram in item_bigrams[row]]
        return 100 * len(set(bigrams)) / len(bigrams) if bigrams else 0.0

    return CorpusScore(distinct_share, resamples=200)


def repetition_2(answers: Answers) -> list[float]:
    """Return 1 where some word 4-gram occurs at least twice in the answer (LR-2; lower is better)."""
    return [
        float(max(Counter(_ngrams(words, 4)).values(), default=0) >= 2)
        for words in _tokenize_predictions(answers)
    ]


def _reference_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return lists of all first, second, ... references, as sacreBLEU takes them; None for a missing one."""
    most_references = max(map(len, references))
    return [
        [
            item_references[reference_index] if reference_index < len(item_references) else None
            for item_references in references
        ]
        for reference_index in range(most_references)
    ]


def _tokenize_predictions(answers: Answers) -> Iterable[list[str]]:
    # The tokenizers of ROUGE, so that diversity and overlap count the same words.
    tokenizer = HanTokenizer() if answers.language == "zh" else DefaultTokenizer()
    return [tokenizer.tokenize(text) for text in answers.predictions]


def _ngrams(words: Sequence[str], order: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start_index:] for start_index in range(order)), strict=False)


def _word_splitter(answers: Answers) -> Callable[[str], list[str]]:
    return HanTokenizer().tokenize if answers.language == "zh" else _split_english


def _split_english(text: str) -> list[str]:
    lower_text = re.sub(r"[^\w\s]", "", text.lower())
    return re.sub(r"\b(a|an|the)\b", " ", lower_text).split()


def _overlap_f1(predicted_words: Counter[str], reference_words: Counter[str]) -> float:
    common_count = (predicted_words & reference_words).total()
    if not predicted_words or not reference_words:
        return float(predicted_words == reference_words)
    return 2 * common_count / (predicted_words.total() + reference_words.total())
