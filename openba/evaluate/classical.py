"""Classical models trained on a task's pairs: what a benchmark's score has to be compared with.

Owns the models and nothing else: TF-IDF with logistic regression for labels, a character tagger for entities,
the nearest training record's answer, copying, and a dictionary of word translations. Each maps training
pairs and questions to one answer a question. scikit-learn trains; which of them a benchmark gets, and the
scores, are `baselines.py`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, make_union

from openba.data.entities import Entity, format_entities, parse_entities
from openba.recipes.data import Language

_SEED = 1234
_INVERSE_REGULARISATION = 10.0
"""scikit-learn's C. Held out at 1, 10 and 100: topics 92.8, 94.3, 94.3 %, sentiment 81.2, 81.8, 81.8 %."""
_LEAST_TEXTS = 2
"""An n-gram of one text alone is no feature: topics 94.3 % as with all, sentiment 83.3 for 81.8, in half the
time."""
_MANY_TEXTS = 100
"""From so many on."""
_TAG_EPOCHS = 4
_TAG_FEATURES = 2**20
_WINDOWS = (
    *((0,), (-1,), (1,), (-2,), (2,)),
    *((-1, 0), (0, 1), (-2, -1), (1, 2)),
    *((-1, 0, 1), (-2, -1, 0), (0, 1, 2)),
)
"""Offsets of the characters that each feature of the tagger joins."""
_MODEL_1_ITERATIONS = 5
_WORD = re.compile(r"[^\W\d_\u3400-\u9fff]+|\d+|[\u3400-\u9fff]|[^\w\s]")
"""A word of letters, a number, a Han character or a sign."""


@dataclass(frozen=True)
class Examples:
    """Training pairs of a task: what is asked, without the prompt's own words, and the right answer."""

    questions: Sequence[str]
    answers: Sequence[str]


def most_frequent(examples: Examples, questions: Sequence[str]) -> list[str]:
    """Answer every question with the commonest answer of the training pairs."""
    [(answer, _)] = Counter(examples.answers).most_common(1)
    return [answer] * len(questions)


def logistic_regression(examples: Examples, questions: Sequence[str]) -> list[str]:
    """Likeliest label of each question: TF-IDF of words and character n-grams, one regression a label."""
    features = _tf_idf(len(examples.questions))
    trained = features.fit_transform(examples.questions)
    if len(set(examples.answers)) == 1:
        return most_frequent(examples, questions)
    regression = LogisticRegression(C=_INVERSE_REGULARISATION, solver="liblinear", random_state=_SEED)
    classifier = OneVsRestClassifier(regression).fit(trained, examples.answers)
    return [str(label) for label in classifier.predict(features.transform(questions))]


def nearest_answer(examples: Examples, questions: Sequence[str]) -> list[str]:
    """Answer as the training question whose TF-IDF vector has the greatest cosine with the question's."""
    features = _tf_idf(len(examples.questions))
    trained = features.fit_transform(examples.questions)
    nearness = features.transform(questions) @ trained.T
    return [examples.answers[row] for row in np.asarray(nearness.argmax(axis=1)).ravel()]


def copied_question(examples: Examples, questions: Sequence[str]) -> list[str]:
    """Answer with the question itself: in translation, names, numbers and signs are right."""
    return list(questions)


def _tf_idf(texts: int) -> FeatureUnion:
    """Words and pairs of words; one to three characters, which Chinese has in place of words."""
    min_count = _LEAST_TEXTS if texts >= _MANY_TEXTS else 1
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_count)
    characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=min_count)
    return make_union(words, characters)


def tagged_entities(examples: Examples, questions: Sequence[str]) -> list[str]:
    """Entities of each question in the paper's notation, by a maximum-entropy tagger of its characters.

    Args:
        examples: sentences and their entities in the notation. The notation has no places: an entity is
            taken to stand where its text occurs next.
        questions: sentences.
    """
    labelled = [
        (text, _tags(text, parse_entities(answer)))
        for text, answer in zip(examples.questions, examples.answers, strict=True)
        if text
    ]
    labels = sorted({tag for _, tags in labelled for tag in tags})
    if labels == ["O"]:
        return [""] * len(questions)
    classifier = SGDClassifier(
        loss="log_loss", alpha=1e-6, max_iter=_TAG_EPOCHS, tol=None, random_state=_SEED
    )
    classifier.fit(
        _window_features([text for text, _ in labelled]), np.concatenate([tags for _, tags in labelled])
    )
    answers = []
    for text in questions:
        scores = classifier.decision_function(_window_features([text])) if text else np.zeros((0, 1))
        if scores.ndim == 1:  # of two labels scikit-learn returns the second one's score
            scores = np.stack([-scores, scores], axis=1)
        path = _best_path(-np.logaddexp(0, -scores), list(classifier.classes_))
        answers.append(format_entities(_entities_of(text, path)))
    return answers


def _tags(text: str, entities: Sequence[Entity]) -> list[str]:
    """Return `B-type`, `I-type` or `O` of each character."""
    tags = ["O"] * len(text)
    search_begin = 0
    for entity, entity_type in entities:
        start_index = text.find(entity, search_begin)
        if start_index < 0 or not entity:
            continue
        search_begin = start_index + len(entity)
        tags[start_index:search_begin] = [f"B-{entity_type}", *[f"I-{entity_type}"] * (len(entity) - 1)]
    return tags


def _window_features(texts: Sequence[str]) -> csr_matrix:
    """Return `[characters, 2**20]`: per character the hashed characters of every window around it."""
    text_columns = []
    for text in texts:
        codes = np.zeros(len(text) + 4, np.uint64)  # two empty characters at either end
        codes[2:-2] = np.array([ord(character) for character in text], np.uint64)
        columns = np.empty((len(text), len(_WINDOWS)), np.int32)
        for window_number, offsets in enumerate(_WINDOWS):
            # Multiplication by an odd constant and shifts, as in splitmix64, spread the bits; a window's
            # number is its seed.
            hashes = np.full(len(text), window_number + 1, np.uint64)
            for offset in offsets:
                start_index = 2 + offset
                hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[start_index : start_index + len(text)]
            hashes ^= hashes >> np.uint64(29)
            columns[:, window_number] = (hashes * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(44)
        text_columns.append(columns)
    column_indices = np.concatenate(text_columns)
    row_starts = np.arange(0, column_indices.size + 1, len(_WINDOWS))
    values = np.ones(column_indices.size, np.float32)
    matrix_shape = (len(column_indices), _TAG_FEATURES)
    return csr_matrix((values, column_indices.ravel(), row_starts), shape=matrix_shape)


def _best_path(scores: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Return the labels of the greatest summed score (Viterbi) in which each `I` continues its type.

    Args:
        scores: log-probabilities `[characters, labels]`.
        labels: their names.
    """
    if not len(scores):
        return []
    is_allowed = np.array(
        [[not label.startswith("I-") or previous[1:] == label[1:] for label in labels] for previous in labels]
    )
    transition_scores = np.where(is_allowed, 0.0, -np.inf)  # [previous, label]
    start_scores = np.array([0.0 if not label.startswith("I-") else -np.inf for label in labels])
    best_scores = scores[0] + start_scores
    best_previous = []
    for label_scores in scores[1:]:
        path_scores = best_scores[:, None] + transition_scores
        best_previous.append(path_scores.argmax(0))
        best_scores = path_scores.max(0) + label_scores
    path = [int(best_scores.argmax())]
    for previous in reversed(best_previous):
        path.append(int(previous[path[-1]]))
    return [labels[index] for index in reversed(path)]


def _entities_of(text: str, tags: Sequence[str]) -> list[Entity]:
    """Return text and type of every run of tags."""
    entities: list[Entity] = []
    for character, tag in zip(text, tags, strict=True):
        if tag.startswith("B-"):
            entities.append((character, tag[2:]))
        elif tag.startswith("I-"):
            entities[-1] = (entities[-1][0] + character, tag[2:])
    return entities


def word_by_word(language: Language, examples: Examples, questions: Sequence[str]) -> list[str]:
    """Translate each word by its likeliest translation (IBM Model 1), in the order of the question.

    A word that no training pair has stays as it is; a translation that repeats the one before is left out.
    """
    lexicon = _train_model_1(
        [_WORD.findall(text) for text in examples.questions],
        [_WORD.findall(text) for text in examples.answers],
    )
    answers = []
    for text in questions:
        translations = [lexicon.get(word, word) for word in _WORD.findall(text)]
        without_repeats = [
            word
            for position, word in enumerate(translations)
            if position == 0 or translations[position - 1] != word
        ]
        answers.append(("" if language == "zh" else " ").join(without_repeats))
    return answers


def _train_model_1(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return source word -> likeliest target word (Brown et al. 1993, Model 1, without the empty word)."""
    source_ids: dict[str, int] = {}
    target_ids: dict[str, int] = {}
    # One entry per pair of a source and a target word of a sentence; `groups` numbers the target words.
    pair_sources: list[int] = []
    pair_targets: list[int] = []
    groups: list[int] = []
    group_count = 0
    for source, target in zip(sources, targets, strict=True):
        source_words = [source_ids.setdefault(word, len(source_ids)) for word in source]
        target_words = [target_ids.setdefault(word, len(target_ids)) for word in target]
        pair_sources += source_words * len(target_words)
        pair_targets += [word for word in target_words for _ in source_words]
        groups += [group_count + index for index in range(len(target_words)) for _ in source_words]
        group_count += len(target_words)
    if not pair_sources:
        return {}
    pair_keys = np.array(pair_sources, np.int64) * len(target_ids) + np.array(pair_targets, np.int64)
    word_pairs, pair_index = np.unique(pair_keys, return_inverse=True)
    source_of_pair = word_pairs // len(target_ids)
    target_of_pair = word_pairs % len(target_ids)
    group_of_entry = np.array(groups)
    probability = np.ones(len(word_pairs))
    for _ in range(_MODEL_1_ITERATIONS):
        # Expectation: share each target word among the source words of its sentence.
        weight = probability[pair_index]
        weight /= np.bincount(group_of_entry, weight)[group_of_entry]
        # Maximisation: normalise the expected counts of each source word.
        pair_count = np.bincount(pair_index, weight)
        probability = pair_count / np.bincount(source_of_pair, pair_count)[source_of_pair]
    target_words_by_id = list(target_ids)
    # Sorted by source word, then probability: in the dict the last of each source word, the likeliest, stays.
    order = np.lexsort((probability, source_of_pair))
    best_target = dict(zip(source_of_pair[order].tolist(), target_of_pair[order].tolist(), strict=True))
    return {
        word: target_words_by_id[best_target[source_id]]
        for word, source_id in source_ids.items()
        if source_id in best_target
    }
