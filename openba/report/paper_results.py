"""Scores of the paper's Tables 6 to 15: of OpenBA and of the best other model, with our benchmark for each.

Owns these facts and nothing else. "Best other" is the best figure of that column among the other models
of the table, in the same setting where the table has several. Source: SCIENCE CHINA Information Sciences
68(9), 192103.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One column of a table of the paper; our pages show it as a line."""

    head: str
    openba: float | None
    """None where the paper does not print it."""
    best: float | None
    """Best score of another model; None where the paper has none in this setting."""
    best_model: str
    benchmark: str = ""
    """Name of our benchmark; empty for a mean of other lines."""
    metric: str = ""
    group: str | None = None
    """Group of the benchmark's categories; None: the score over all items."""
    mean_of: tuple[tuple[str, ...], ...] = ()
    """Groups of lines: the line is the mean over groups, each the mean of its lines."""
    lower: bool = False
    """Less is better."""


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    number: int
    title: str
    note: str
    lines: tuple[Line, ...]


def _singles(*heads: str) -> tuple[tuple[str, ...], ...]:
    return tuple((head,) for head in heads)


def _groups(
    benchmark: str, metric: str, best_model: str, *rows: tuple[str, float, float | None]
) -> list[Line]:
    return [
        Line(
            f"{benchmark}: {group}", openba, best, best_model if best is not None else "", benchmark, metric,
            "all" if group == "Average" else group,
        )
        for group, openba, best in rows
    ]  # fmt: skip


_T5 = "Flan-T5-XL"
_SUPERGLUE = (
    Line("BoolQ Acc.", 82.6, 89.3, _T5, "superglue-boolq", "accuracy"),
    Line("CB Acc.", 85.6, 91.2, _T5, "superglue-cb", "accuracy"),
    Line("CB F1", None, None, "", "superglue-cb", "macro_f1"),
    Line("RTE Acc.", 83.9, 90.4, _T5, "superglue-rte", "accuracy"),
    Line("ReCoRD F1", 69.4, 91.1, "GPT3", "superglue-record", "token_f1"),
    Line("ReCoRD EM", 68.8, 90.0, "GPT3", "superglue-record", "normalised_match"),
    Line("WSC Acc.", 76.0, 84.9, _T5, "superglue-wsc", "accuracy"),
    Line("WiC Acc.", 57.2, 69.5, "BERT-Large", "superglue-wic", "accuracy"),
    Line("CoPA Acc.", 85.8, 97.6, _T5, "superglue-copa", "accuracy"),
    Line("MultiRC F1", 77.1, 87.0, _T5, "superglue-multirc", "f1"),
    Line("MultiRC EM", 38.9, 57.9, _T5, "superglue-multirc", "question_exact_match"),
    Line("AX-b MCC", 40.8, 50.1, _T5, "superglue-axb", "matthews"),
    Line("AX-g GPS", 94.4, 99.4, "BERT-Large++", "superglue-axg", "gender_parity"),
    Line("AX-g Acc.", 70.2, 91.9, _T5, "superglue-axg", "accuracy"),
    Line(
        "Avg.", 73.1, 79.3, _T5,
        mean_of=(*_singles("BoolQ Acc.", "CoPA Acc."), ("CB Acc.", "CB F1"), ("MultiRC F1", "MultiRC EM"),
                 ("ReCoRD F1", "ReCoRD EM"), *_singles("RTE Acc.", "WiC Acc.", "WSC Acc.")),
    ),
)  # fmt: skip
_BELEBELE = (
    Line("eng_Latn", 78.6, 87.7, "GPT3.5-Turbo", "belebele-en", "accuracy"),
    Line("zho_Hans", 75.2, 77.6, "GPT3.5-Turbo", "belebele-zh-hans", "accuracy"),
    Line("zho_Hant", 73.7, 76.3, "GPT3.5-Turbo", "belebele-zh-hant", "accuracy"),
    Line("Avg.", 75.8, 80.5, "GPT3.5-Turbo", mean_of=_singles("eng_Latn", "zho_Hans", "zho_Hant")),
)
_NER = (
    Line("Movie", 51.4, 63.0, "InstructUIE-11B", "ner-mit-movie", "entity_f1"),
    Line("Restaurant", 37.4, 36.2, "UniNER-13B", "ner-mit-restaurant", "entity_f1"),
    Line("AI", 58.5, 54.2, "UniNER-13B", "ner-crossner-ai", "entity_f1"),
    Line("Literature", 54.6, 60.9, "UniNER-13B", "ner-crossner-literature", "entity_f1"),
    Line("Music", 69.1, 65.0, "UniNER-7B", "ner-crossner-music", "entity_f1"),
    Line("Politics", 68.4, 61.4, "UniNER-13B", "ner-crossner-politics", "entity_f1"),
    Line("Science", 68.2, 63.5, "UniNER-13B", "ner-crossner-science", "entity_f1"),
    Line(
        "Avg.", 58.2, 55.6, "UniNER-13B",
        mean_of=_singles("Movie", "Restaurant", "AI", "Literature", "Music", "Politics", "Science"),
    ),
)  # fmt: skip
_TEXT = (
    Line("WIKI AUTO B-2", 27.9, 29.2, "ChatGLM", "wikiauto", "bleu_2"),
    Line("WIKI AUTO D-2", 1.9, 1.5, "MOSS", "wikiauto", "distinct_2"),
    Line("WIKI AUTO LR-2", 75.6, 82.9, "MOSS", "wikiauto", "repetition_2", lower=True),
    Line("WIKI AUTO Mav", 99.1, 97.7, "ChatGLM", "wikiauto", "mauve"),
    Line("WIKI AUTO SIM", 6.6, 5.5, "BatGPT", "wikiauto", "sim"),
    Line("QQP B-2", 22.7, 25.0, "ChatGLM", "qqp", "bleu_2"),
    Line("QQP D-2", 2.0, 2.0, "ChatGLM", "qqp", "distinct_2"),
    Line("QQP LR-2", 48.0, 55.5, "Baichuan2", "qqp", "repetition_2", lower=True),
    Line("QQP Mav", 94.4, 93.6, "ChatGLM", "qqp", "mauve"),
    Line("QQP SIM", 7.9, 7.8, "MOSS", "qqp", "sim"),
)
_B2 = "Baichuan2"

TABLES: tuple[PaperTable, ...] = (
    PaperTable(
        6, "SuperGLUE, 0-shot",
        "Ours is the official average of eight tasks, in which CB, MultiRC and ReCoRD count by the mean of "
        "their two metrics. The paper's 73.1 is neither the mean of its 13 columns (71.6) nor that of the "
        "eight tasks with CB by accuracy alone (74.8). With a CB F1 of 58.8, which it does not print, it "
        "would be the official one.",
        _SUPERGLUE,
    ),
    PaperTable(7, "BELEBELE, 0-shot", "GPT3.5-Turbo is 0-shot too.", _BELEBELE),
    PaperTable(
        8, "CLTS", "The paper scores 100 articles that it does not name.",
        (
            Line("Rouge-1", 30.2, 27.3, "ChatGLM", "clts", "rouge_1"),
            Line("Rouge-2", 13.9, 17.2, "ChatGLM", "clts", "rouge_2"),
            Line("Rouge-L", 28.6, 26.7, "ChatGLM", "clts", "rouge_l"),
        ),
    ),
    PaperTable(
        9, "Flores, BLEU-4", "The paper scores 50 sentences that it does not name.",
        (
            Line("Zh-En", 23.3, 23.5, _B2, "flores-zh-en", "bleu"),
            Line("En-Zh", 37.4, 40.2, _B2, "flores-en-zh", "bleu"),
            Line("Avg.", 30.4, 31.9, _B2, mean_of=_singles("Zh-En", "En-Zh")),
        ),
    ),
    PaperTable(
        10, "Simplification and paraphrase",
        "LR-2: less is better. Mav and SIM need models; the paper states neither SIM's model nor scale.",
        _TEXT,
    ),
    PaperTable(11, "BBH, 0-shot", "", (Line("BBH", 34.1, 41.6, _B2, "bbh", "average"),)),
    PaperTable(
        12, "MMLU",
        "The other models are 5-shot. The release's 5-shot log gives the row marked as chain of thought.",
        (
            *_groups("mmlu", "accuracy", "", ("Humanities", 38.7, None), ("STEM", 33.8, None),
                     ("Social sciences", 45.0, None), ("Other", 43.6, None), ("Average", 40.2, None)),
            *_groups("mmlu-5shot", "accuracy", _B2, ("Humanities", 34.6, 51.2), ("STEM", 29.8, 44.6),
                     ("Social sciences", 40.1, 61.5), ("Other", 40.0, 60.5), ("Average", 36.0, 54.2)),
            *_groups("mmlu-cot", "exact_match", "", ("Humanities", 36.7, None), ("STEM", 31.4, None),
                     ("Social sciences", 42.8, None), ("Other", 42.3, None), ("Average", 38.2, None)),
        ),
    ),
    PaperTable(
        13, "CMMLU", "",
        (
            *_groups("cmmlu", "accuracy", _B2, ("Humanities", 40.9, 59.2), ("STEM", 33.8, 42.3),
                     ("Social science", 44.7, 59.9), ("Other", 43.6, 58.7), ("China-specific", 38.6, 56.6),
                     ("Average", 41.2, 55.0)),
            *_groups("cmmlu-5shot", "accuracy", _B2, ("Humanities", 40.9, 61.0), ("STEM", 33.5, 43.6),
                     ("Social science", 45.2, 61.8), ("Other", 44.5, 60.8), ("China-specific", 39.1, 58.3),
                     ("Average", 41.5, 56.8)),
            *_groups("cmmlu-cot", "exact_match", "", ("Humanities", 30.0, None), ("STEM", 37.6, None),
                     ("Social science", 40.6, None), ("Other", 39.2, None), ("China-specific", 36.4, None),
                     ("Average", 37.0, None)),
        ),
    ),
    PaperTable(
        14, "C-Eval", "The paper's figures are of the test split, whose answers are not public; ours of val.",
        (
            *_groups("ceval", "accuracy", _B2, ("STEM", 34.8, 47.8), ("Social science", 46.6, 67.5),
                     ("Humanities", 41.1, 58.7), ("Others", 41.5, 53.1), ("Average", 39.8, 55.0),
                     ("Hard", 31.1, 36.8)),
            *_groups("ceval-cot", "exact_match", "", ("STEM", 30.7, None), ("Social science", 43.7, None),
                     ("Humanities", 40.9, None), ("Others", 35.2, None), ("Average", 36.3, None),
                     ("Hard", 27.0, None)),
        ),
    ),
    PaperTable(15, "NER, strict entity F1, out of domain", "", _NER),
)  # fmt: skip
