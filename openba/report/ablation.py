"""Figure 5 from the user's own run: held-out loss and next-token accuracy of compared shapes against tokens.

Owns which of a training's measurements make the figure, its table and its drawings. The measurements are the
training's own (`openba.train.heldout`): R, S, X and all of them together, equation 3 for the accuracy.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

SETS = {"R": "R-denoising", "S": "S-denoising", "X": "X-denoising", "mixed": "all three"}
HEADS = (
    "shape",
    "encoder_layers",
    "decoder_layers",
    "parameters",
    "step",
    "tokens",
    "set",
    "loss",
    "accuracy",
)

Row = dict[str, Any]
"""Of `HEADS`: one shape on one set after so many tokens. Loss in nats a target token, accuracy in percent."""


def ablation_rows(shapes: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The figure's points.

    Args:
        shapes: name -> `encoder_layers`, `decoder_layers`, `parameters`, `tokens_per_step` and `heldout`,
            the rows of a Stage I training.
    """
    rows = []
    for name, shape in shapes.items():
        about = {key: shape[key] for key in ("encoder_layers", "decoder_layers", "parameters")}
        for point in shape["heldout"]:
            for kind in SETS:
                loss, accuracy = ("loss", "accuracy") if kind == "mixed" else (kind, f"{kind}_accuracy")
                rows.append(
                    {
                        "shape": name,
                        **about,
                        "step": point["step"],
                        "tokens": point["step"] * shape["tokens_per_step"],
                        "set": kind,
                        "loss": point[loss],
                        "accuracy": 100 * point[accuracy],
                    }
                )
    return rows


def ablation_csv(rows: Sequence[Row]) -> str:
    """The points, a line each."""
    file = StringIO()
    write = csv.DictWriter(file, HEADS, lineterminator="\n")
    write.writeheader()
    write.writerows(rows)
    return file.getvalue()


def ablation_charts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(what it shows, SVG) of each set, its loss and then its accuracy; none if there are no points."""
    if not rows:
        return []
    from openba.report.charts import lines_chart

    charts = []
    for kind, title in SETS.items():
        for key, unit in (("loss", "loss (nats per token)"), ("accuracy", "accuracy (%)")):
            series = [
                (_label(line[0]), [(row["tokens"] / 1e6, row[key], None) for row in line])
                for line in _lines(rows, kind)
            ]
            told = f"{key.capitalize()} on {title}"
            charts.append((told, lines_chart(told, series, "million tokens", unit)))
    return charts


def _lines(rows: Sequence[Row], kind: str) -> list[list[Row]]:
    mine = [row for row in rows if row["set"] == kind]
    return [[row for row in mine if row["shape"] == name] for name in dict.fromkeys(r["shape"] for r in mine)]


def _label(row: Row) -> str:
    return f"{row['encoder_layers']}/{row['decoder_layers']}, {row['parameters'] / 1e6:.2f}M"
