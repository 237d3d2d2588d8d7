"""The paper's tables and Figure 6 from own results: in their places, no mean of a part, no 0 for not run."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from openba.config import CONFIGS
from openba.report.evolution import evolution, evolution_csv
from openba.report.page import render
from openba.report.paper_results import TABLES
from openba.report.paper_tables import evaluation_row, paper_tables, table_csv, write_tables

LINES = {(table.number, line.head): line for table in TABLES for line in table.lines}


def result(n: int, groups: Any = None, **scores: float) -> dict[str, Any]:
    errors = {f"{key}_stderr": 1.5 for key in scores}
    return {"method": "letters", "n": n, "scores": {"n": n, **scores, **errors}, "groups": groups or {}}


def row(model: str, benchmark: str, n: int = 10, groups: Any = None, **scores: float) -> dict[str, Any]:
    return evaluation_row(model, benchmark, result(n, groups, **scores))


def ours(tables: list[dict[str, Any]], number: int, model: str) -> dict[str, Any]:
    (table,) = [table for table in tables if table["number"] == number]
    return {line["head"]: line["ours"][model] for line in table["lines"]}


def test_every_line_names_a_benchmark_that_there_is_or_is_said_to_be_missing() -> None:
    known = {path.stem for path in (CONFIGS / "benchmark" / "paper").glob("*.yaml")}
    for (number, head), line in LINES.items():
        assert bool(line.benchmark) != bool(line.mean_of), (number, head)
        if line.benchmark:
            assert line.benchmark in known
    assert len([1 for number, _ in LINES if number == 6]) == 15  # 13 columns, CB's F1 and the average


@pytest.mark.parametrize(
    ("number", "heads", "average"),
    [
        (7, ["eng_Latn", "zho_Hans", "zho_Hant"], "Avg."),
        (9, ["Zh-En", "En-Zh"], "Avg."),
        (15, ["Movie", "Restaurant", "AI", "Literature", "Music", "Politics", "Science"], "Avg."),
    ],
)
def test_the_papers_own_averages_follow_from_our_rule(number: int, heads: list[str], average: str) -> None:
    figures = [
        row(
            "paper", LINES[number, head].benchmark, **{LINES[number, head].metric: LINES[number, head].openba}
        )
        for head in heads
    ]
    found = ours(paper_tables(figures), number, "paper")
    assert found[average]["score"] == pytest.approx(LINES[number, average].openba, abs=0.06)


def test_superglues_average_is_the_official_one() -> None:
    scores: dict[str, dict[str, float]] = {}
    for (number, _), line in LINES.items():
        if number == 6 and line.benchmark:
            scores.setdefault(line.benchmark, {})[line.metric] = (
                line.openba if line.openba is not None else 58.8
            )
    figures = [row("paper", name, **found) for name, found in scores.items()]
    assert ours(paper_tables(figures), 6, "paper")["Avg."]["score"] == pytest.approx(73.1, abs=0.05)


def test_scores_stand_in_their_places_and_groups_in_theirs() -> None:
    groups = {"STEM": {"score": 30.0, "stderr": 2.0, "n": 7}, "all": {"score": 31.0, "stderr": 1.0, "n": 9}}
    tables = paper_tables(
        [
            row("a", "mmlu", groups={**groups, "Humanities": {"n": 0}}, accuracy=31.0),
            row("b", "bbh", average=12.0),
        ]
    )
    assert [table["number"] for table in tables] == list(range(6, 16))
    assert [table["number"] for table in tables if table["models"]] == [11, 12]
    mmlu = ours(tables, 12, "a")
    assert mmlu["mmlu: STEM"] == {"score": 30.0, "stderr": 2.0, "n": 7}
    assert mmlu["mmlu: Average"]["score"] == 31.0
    assert mmlu["mmlu: Humanities"] is None
    assert mmlu["mmlu-5shot: STEM"] is None
    assert ours(tables, 11, "b")["BBH"]["score"] == 12.0


def test_a_mean_with_a_part_missing_is_not_run(tmp_path: Path) -> None:
    tables = paper_tables([row("a", "flores-zh-en", bleu=3.0)])
    found = ours(tables, 9, "a")
    assert found["Avg."] is None
    assert found["En-Zh"] is None
    flores = next(table for table in tables if table["number"] == 9)
    rows = list(csv.DictReader(StringIO(table_csv(flores))))
    assert [line["a score"] for line in rows] == ["3.0", "", ""]
    assert [line["paper OpenBA"] for line in rows] == ["23.3", "37.4", "30.4"]
    written = write_tables(tmp_path, [row("a", "flores-zh-en", bleu=3.0)])
    assert [path.name for path in written] == ["table-9.csv", "tables.html"]
    page = (tmp_path / "tables.html").read_text(encoding="utf-8")
    assert page.partition("<h3>Table 9:")[2].partition("</table>")[0].count("not run") == 2
    for number in {*range(6, 16)} - {9}:  # with the paper's figures, and of ours that there are none
        table = page.partition(f"<h3>Table {number}:")[2].partition("</table>")[0]
        assert table.count("not run") == table.count("<tr>") - 1 > 0
    assert "Baichuan2" in page


def test_the_report_has_the_tables_and_figure_6() -> None:
    training = [{"step": f"stage{i}", "title": f"Stage {i}", "steps": 100 * i} for i in (1, 2, 3)]
    training.append({"step": "chat", "title": "Chat", "steps": 9, "baseline_heldout": 2.0})
    evaluations = [row(f"stage{i}", "bbh", average=10.0 * i) for i in (1, 3)]
    evaluations += [row("chat", "bbh", average=99.0), row("stage3", "clts", rouge_1=5.0)]
    report: Any = {"training": training, "evaluations": evaluations}
    points = evolution(report)
    assert list(points) == ["bbh"]
    assert [(p["model"], p["step"], p["score"]) for p in points["bbh"]] == [
        ("stage1", 100, 10.0),
        ("stage3", 600, 30.0),
    ]
    assert evolution_csv(report).splitlines()[1:] == [
        "bbh,stage1,100,average,10.0,1.5,10",
        "bbh,stage3,600,average,30.0,1.5,10",
    ]
    report["evaluations_between"] = [{**row("stage3", "bbh", average=25.0), "step": 50}]
    assert [(p["step"], p["score"]) for p in evolution(report)["bbh"]] == [
        (100, 10.0),
        (350, 25.0),
        (600, 30.0),
    ]
    broken = {"records": 3, "first": ["x"]}
    evaluations.append(
        evaluation_row(
            "stage3", "qqp", {**result(5, bleu_2=1.0), "counts": {"empty answers": 4}, "broken": broken}
        )
    )
    page = render(report)
    assert "4 empty answers, 3 broken records left out" in page
    assert "Scores over training" in page
    assert "Table 11: BBH" in page
    assert "41.6" in page
    assert evolution_csv({}).count("\n") == 1
