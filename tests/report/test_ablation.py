"""Figure 5: from three declared shapes to points, CSV and drawings; what was not trained is not drawn."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

import pytest

from openba.accounting.count import count_parameters
from openba.graph import Pipeline, find_pipeline
from openba.report.ablation import COLUMNS, ablation_charts, ablation_csv, ablation_rows
from openba.report.page import render


def heldout(*losses: float) -> list[dict[str, Any]]:
    return [
        {"step": 10 * at, "loss": loss, "accuracy": 0.1 * at}
        | {mode: loss + n for n, mode in enumerate("RSX", 1)}
        | {f"{mode}_accuracy": 0.1 * at + 0.01 * n for n, mode in enumerate("RSX", 1)}
        for at, loss in enumerate(losses)
    ]


def shape(encoder: int, decoder: int, *losses: float) -> dict[str, Any]:
    layers = {"encoder_layers": encoder, "decoder_layers": decoder, "parameters": 3_000_000}
    return {**layers, "tokens_per_step": 1000, "heldout": heldout(*losses)}


def test_the_pipeline_trains_the_three_shapes_at_equal_parameters_and_nothing_after() -> None:
    graph = Pipeline(find_pipeline("ablation"))
    built = [step.name for step in graph.wanted(None)]
    assert built[-3:] == ["stage1-6-2", "stage1-2-6", "stage1-4-4"]
    assert not {"stage1", "stage2", "flan", "chat"} & set(built)
    counts = [count_parameters(model, 8103)["total"] for model in graph.config.ablation.values()]
    assert max(counts) / min(counts) < 1.006
    assert len({model.encoder_layers + model.decoder_layers for model in graph.config.ablation.values()}) == 1
    recipes = {step.recipe.train.model_dump_json() for step in graph.comparison}  # type: ignore[attr-defined]
    assert len(recipes) == 1
    assert len({step.fingerprint for step in graph.comparison}) == 3
    assert "stage1" in [step.name for step in graph.wanted("stage1")]  # its own model, if it is asked for


def test_points_are_the_measurements_and_mixed_is_all_together() -> None:
    rows = ablation_rows({"6-2": shape(6, 2, 9.0, 5.0), "2-6": shape(2, 6, 9.0, 4.0)})
    assert len(rows) == 2 * 2 * 4
    last = {row["set"]: row for row in rows if row["shape"] == "2-6" and row["step"] == 10}
    assert {kind: row["loss"] for kind, row in last.items()} == {"R": 5.0, "S": 6.0, "X": 7.0, "mixed": 4.0}
    assert last["S"]["accuracy"] == pytest.approx(12.0)
    assert last["mixed"]["accuracy"] == pytest.approx(10.0)
    assert {row["tokens"] for row in last.values()} == {10_000}
    read = list(csv.DictReader(StringIO(ablation_csv(rows))))
    assert [tuple(row) for row in read] == [COLUMNS] * 16
    assert [float(row["loss"]) for row in read] == [row["loss"] for row in rows]


def test_the_page_has_eight_drawings_or_says_not_run() -> None:
    rows = ablation_rows({"6-2": shape(6, 2, 9.0, 5.0), "2-6": shape(2, 6, 9.0, 4.0)})
    charts = ablation_charts(rows)
    assert len(charts) == 8
    assert all(svg.startswith("<svg") and "6/2, 3.00M" in svg for _, svg in charts)
    page = render({"ablation": rows})
    figure = page.partition('id="figure-5"')[2].partition("</section>")[0]
    assert figure.count("<svg") == 8
    assert ablation_charts([]) == []
    empty = render({}).partition('id="figure-5"')[2].partition("</section>")[0]
    assert "not run" in empty
    assert "<svg" not in empty
