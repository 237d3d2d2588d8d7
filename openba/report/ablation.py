"""Figure 5 from the user's own run: held-out loss and next-token accuracy of compared shapes against tokens.

Owns the figure's table and drawings. `openba.train.heldout` measures: R, S, X and all of them together, with
the accuracy of the paper's equation 3.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO

from openba.json_types import JsonObject

HELDOUT_SETS = {"R": "R-denoising", "S": "S-denoising", "X": "X-denoising", "mixed": "all three"}
_SHAPE_KEYS = ("encoder_layers", "decoder_layers", "parameters")
COLUMNS = ("shape", *_SHAPE_KEYS, "step", "tokens", "set", "loss", "accuracy")

Row = JsonObject
"""One shape on one held-out set after so many tokens, with `COLUMNS` as keys: loss in nats per target token,
accuracy in percent."""


def ablation_rows(shapes: Mapping[str, JsonObject]) -> list[Row]:
    """Return the figure's points.

    Args:
        shapes: name -> `encoder_layers`, `decoder_layers`, `parameters`, `tokens_per_step` and `heldout`,
            the rows of a Stage I training.
    """
    rows = []
    for shape_name, shape in shapes.items():
        for point in shape["heldout"]:
            # A measurement has the loss of a mode under its letter, and the loss over all as `loss`.
            for heldout_set in HELDOUT_SETS:
                is_mixed = heldout_set == "mixed"
                rows.append(
                    {
                        "shape": shape_name,
                        **{key: shape[key] for key in _SHAPE_KEYS},
                        "step": point["step"],
                        "tokens": point["step"] * shape["tokens_per_step"],
                        "set": heldout_set,
                        "loss": point["loss" if is_mixed else heldout_set],
                        "accuracy": 100 * point["accuracy" if is_mixed else f"{heldout_set}_accuracy"],
                    }
                )
    return rows


def ablation_csv(rows: Sequence[Row]) -> str:
    """Return the points as CSV, one line each."""
    csv_text = StringIO()
    csv_writer = csv.DictWriter(csv_text, COLUMNS, lineterminator="\n")
    csv_writer.writeheader()
    csv_writer.writerows(rows)
    return csv_text.getvalue()


def ablation_charts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (caption, SVG) for each set, loss and then accuracy; empty if there are no points."""
    if not rows:
        return []
    from openba.report.charts import lines_chart

    charts = []
    for heldout_set, title in HELDOUT_SETS.items():
        for key, unit in (("loss", "loss (nats per token)"), ("accuracy", "accuracy (%)")):
            series = [
                (_shape_label(line[0]), [(row["tokens"] / 1e6, row[key], None) for row in line])
                for line in _rows_by_shape(rows, heldout_set)
            ]
            caption = f"{key.capitalize()} on {title}"
            charts.append((caption, lines_chart(caption, series, "million tokens", unit)))
    return charts


def _rows_by_shape(rows: Sequence[Row], heldout_set: str) -> list[list[Row]]:
    rows_by_shape: dict[str, list[Row]] = {}
    for row in rows:
        if row["set"] == heldout_set:
            rows_by_shape.setdefault(row["shape"], []).append(row)
    return list(rows_by_shape.values())


def _shape_label(row: Row) -> str:
    return f"{row['encoder_layers']}/{row['decoder_layers']}, {row['parameters'] / 1e6:.2f}M"
