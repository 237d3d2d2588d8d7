"""Scores of real Chinese, English, entity lists and programs."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from openba.data.entities import format_entities
from openba.errors import UserError
from openba.evaluate.answers import Answers
from openba.evaluate.metrics import score, score_answers
from openba.evaluate.text_metrics import HanTokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ZH = [
    "江泽民主席发表1998年新年讲话《迈向充满希望的新世纪》。",
    "北京今日多云，最高气温２℃。",
    "这家酒店的服务很好，下次还来。",
]
EN = [
    "The committee adopted the report on Tuesday.",
    "Shares in the airline fell by 3%.",
    "He won the final.",
]
ENTITIES = st.lists(
    st.tuples(st.sampled_from(["江泽民", "Rome", "a (b)"]), st.sampled_from(["person", "place"]))
)


@pytest.mark.parametrize(("language", "texts"), [("zh", ZH), ("en", EN)])
def test_identical_text_scores_full_marks(language, texts):
    scores = score(["accuracy", "bleu", "chrf", "rouge_l", "exact_match"], texts, texts, language)
    for metric in ("accuracy", "bleu", "chrf", "rouge_l", "exact_match"):
        assert scores[metric] == pytest.approx(100)
        assert scores.get(f"{metric}_stderr", 0.0) == pytest.approx(0)
    assert scores["n"] == 3


@pytest.mark.parametrize(("language", "texts"), [("zh", ZH), ("en", EN)])
def test_other_text_scores_less_and_empty_answers_score_nothing(language, texts):
    metrics = ["bleu", "chrf", "rouge_l", "exact_match"]
    other = score(metrics, texts[1:] + texts[:1], texts, language)
    empty = score(metrics, [""] * 3, texts, language)
    for metric in metrics:
        assert other[metric] < 60
        assert empty[metric] == 0


def test_bleu_of_chinese_is_cut_into_characters():
    # One character of eight differs. sacreBLEU's default tokenizer sees one word, which is wrong.
    scores = score(["bleu"], ["今天天气非常好。"], ["今天天气非常坏。"], "zh")
    assert scores["bleu"] > 50
    assert "tok:zh" in str(scores["bleu_signature"])
    assert "tok:13a" in str(score(["bleu"], EN, EN, "en")["bleu_signature"])


@pytest.mark.parametrize("language", ["zh", "en"])
def test_half_of_each_flores_sentence_scores_by_the_formula(language):
    file = SHARED / "eval_flores_zh_en" / "dev.jsonl"
    if not file.exists():
        pytest.skip("shared/data/eval_flores_zh_en is not here")
    sentences = [json.loads(line)[language] for line in file.read_text(encoding="utf-8").splitlines()[:50]]
    halves = [text[: len(text) // 2] for text in sentences]
    scores = score(["bleu", "rouge_l"], halves, sentences, language)
    assert 25 < scores["bleu"] < 45  # all words right, half of them: the brevity penalty, exp(-1) = 0.37
    assert 60 < scores["rouge_l"] < 72  # precision 1, recall a half
    assert 0 < scores["bleu_stderr"] < 2


def test_rouge_words_of_mixed_text():
    assert HanTokenizer().tokenize("ＡＩ模型GPT-4，很好！") == ["ai", "模", "型", "gpt", "4", "很", "好"]


def test_accuracy_and_its_standard_error():
    scores = score(["accuracy"], ["正面"] * 50 + ["负面"] * 50, ["正面"] * 100, "zh")
    assert scores["accuracy"] == 50
    assert scores["accuracy_stderr"] == pytest.approx(100 * (0.25 / 99) ** 0.5, abs=1e-3)


def test_exact_match_ignores_only_what_a_tokenizer_may_change():
    assert score(["exact_match"], ["Ａ  b", "a b"], ["A b", "A b"], "en")["exact_match"] == 50


def test_entities_need_text_and_type():
    reference = "[江泽民](person), [北京](place), [新华社](organization)"
    answer = "[北京](place), [江泽民](place), [新华](organization)"
    scores = score(["entity_f1"], [answer], [reference], "zh")
    assert scores["entity_f1"] == pytest.approx(100 / 3, abs=1e-3)  # one of three right


def test_entities_are_counted_by_mention():
    once, twice = "[Rome](city)", "[Rome](city), [Rome](city)"
    assert score(["entity_f1"], [twice], [once], "en")["entity_f1"] == pytest.approx(200 / 3, abs=1e-3)
    assert score(["entity_f1"], [twice], [twice], "en")["entity_f1"] == 100


def test_an_unreadable_answer_finds_nothing_and_is_told():
    scores = score(["entity_f1"], ["[Rome](city", "[Rome](city)"], ["[Rome](city)"] * 2, "en")
    assert scores["entity_f1_unreadable"] == 50
    assert scores["entity_f1"] == pytest.approx(200 / 3, abs=1e-3)  # precision 1, recall a half


@given(st.lists(st.tuples(ENTITIES, ENTITIES), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_strict_f1_is_twice_the_overlap_over_the_sizes(items):
    answers, references = ([format_entities(side) for side in sides] for sides in zip(*items, strict=True))
    right = sum(sum(min(a.count(e), r.count(e)) for e in set(a)) for a, r in items)
    size = sum(len(a) + len(r) for a, r in items)
    expected = 200 * right / size if size else 100
    assert score(["entity_f1"], answers, references, "en")["entity_f1"] == pytest.approx(expected, abs=1e-3)


def test_syntax_of_real_and_broken_programs():
    program = textwrap.dedent(inspect.getsource(textwrap.dedent))
    broken = ["", "def f(:", "x = '\0'", "(" * 100_000, "return =", program.replace(":", "")]
    assert score(["python_syntax"], [program], [""], "en")["python_syntax"] == 100
    assert score(["python_syntax"], broken, [""] * len(broken), "en")["python_syntax"] == 0


def test_programs_are_parsed_and_never_run(tmp_path):
    mark = tmp_path / "ran"
    program = f"open({str(mark)!r}, 'w').write('x')"
    assert score(["python_syntax"], [program], [""], "en")["python_syntax"] == 100
    assert not mark.exists()


def test_nothing_to_score_is_told():
    with pytest.raises(UserError, match="no held-out records"):
        score(["bleu"], [], [], "en")


def test_f1_of_chinese_counts_characters():
    assert score(["token_f1"], ["北京市海淀区"], ["北京海淀区"], "zh")["token_f1"] == pytest.approx(
        1000 / 11, abs=1e-3
    )
    assert score(["token_f1"], ["GPT-4 模型"], ["GPT 4模型"], "zh")["token_f1"] == 100


def test_rare_ideographs_are_characters_for_bleu():
    right = "\U00020000\U00020001\U00020002\U00020003\U00020004"
    wrong = right[:4] + "\U00020005"
    assert score(["bleu"], [wrong], [right], "zh")["bleu"] == pytest.approx(66.87, abs=0.01)
    assert score(["bleu"], ["今天天气非常好"], ["今天天气非常坏"], "zh")["bleu"] > 50


def test_official_normalisation_has_no_case_articles_and_punctuation():
    metrics = ["normalised_match", "exact_match", "token_f1"]
    scores = score(metrics, ["united states"], ["the United States"], "en")
    assert (scores["normalised_match"], scores["exact_match"], scores["token_f1"]) == (100, 0, 100)
    assert score(metrics, ["states united"], ["United States"], "en")["normalised_match"] == 0


def test_macro_f1_is_the_mean_over_labels():
    right, given = ["yes", "yes", "no", "maybe"], ["yes", "no", "no", "no"]
    # yes: 2/3, no: 1/2, maybe: 0
    assert score(["macro_f1"], given, right, "en")["macro_f1"] == pytest.approx(
        100 * (2 / 3 + 1 / 2) / 3, abs=1e-3
    )


@pytest.mark.parametrize("ending", [", [Lond", ",", ", [London](ci", ", and others"])
def test_complete_entities_of_a_broken_answer_are_counted_beside_the_strict_figure(ending):
    right = "[Rome](city), [Ann](person)"
    scores = score(["entity_f1"], [right + ending], [right + ", [London](city)"], "en")
    assert scores["entity_f1"] == 0
    assert scores["entity_f1_unreadable"] == 100
    assert scores["entity_f1_complete"] == pytest.approx(80)


def test_a_score_that_is_no_number_is_said_and_the_others_stand():
    answers = Answers(["a"], [["a"]], "en", [""], losses=[[float("nan"), 3.0]])
    scores = score_answers(["exact_match", "perplexity"], answers)
    assert scores["exact_match"] == 100
    assert "no finite number" in str(scores["perplexity_not_run"])


def test_corpus_scores_are_sacrebleus_own():
    pairs = [
        line.split("\t") for line in ("the cat sat\tthe cat sat down", "a b c d e\ta b c x e", "one\ttwo")
    ]
    given, right = [a for a, _ in pairs], [b for _, b in pairs]
    scores = score(["bleu", "bleu_2", "chrf"], given, right, "en")
    assert scores["bleu"] == pytest.approx(BLEU().corpus_score(given, [right]).score, abs=1e-3)
    assert scores["bleu_2"] == pytest.approx(
        BLEU(max_ngram_order=2).corpus_score(given, [right]).score, abs=1e-3
    )
    assert scores["chrf"] == pytest.approx(CHRF().corpus_score(given, [right]).score, abs=1e-3)
    assert scores["chrf_stderr"] > 0
