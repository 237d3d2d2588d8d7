"""Draw the report's charts: facts in, inline SVG out.

Owns what is drawn and how. Colours are CSS variables of the page, so one drawing serves light and dark; text
stays text, in the page's font. Only this module imports matplotlib, without pyplot and its global state.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from math import isfinite
from statistics import fmean
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from openba.report.schema import CurvePoint, FunnelRow, HeldoutPoint, Mixture, Training

T = TypeVar("T")

WIDTH = 4.8
"""Inches; with 9 pt text a chart is legible from 320 px, a telephone, to 560 px, a desktop column."""
MOST_POINTS = 240
"""Points of one line: a column has no pixels to show more, and each chart stays far below 60 kB of SVG."""

# matplotlib supports no CSS variables: it draws in stand-in colours that are replaced in its output.
_INK = "#000001"
_MUTED = "#000002"
_RULE = "#000003"
_SERIES = ("#000011", "#000012", "#000013", "#000014")
_CSS_VARIABLES = {_INK: "ink", _MUTED: "muted", _RULE: "rule"} | {
    colour: f"c{number}" for number, colour in enumerate(_SERIES, 1)
}

_STYLE: Any = {  # matplotlib types the keys as literals, which a plain dictionary does not match
    "svg.fonttype": "none",
    "text.parse_math": False,  # a source's name may hold a dollar sign, which would begin a formula
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.color": _RULE,
    "ytick.labelcolor": _MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def funnel_chart(rows: Sequence[FunnelRow], source: str = "all sources") -> str:
    """Draw documents, bytes and tokens left after each cleaning stage, in % of the input of all rows."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    first_rows = {row["source"]: row for row in reversed(rows)}
    units = [unit for unit in ("documents", "bytes", "tokens") if all(f"{unit}_in" in row for row in rows)]

    def percent_left(stage: str, unit: str) -> float:
        stage_rows = [row for row in rows if row["stage"] == stage]
        amount_in = sum(first_rows[row["source"]][f"{unit}_in"] for row in stage_rows)  # type: ignore[literal-required]
        amount_out = sum(row[f"{unit}_out"] for row in stage_rows)  # type: ignore[literal-required]
        return 100 * amount_out / amount_in if amount_in else 0.0

    def draw(axes: Axes) -> None:
        bar_height = 0.76 / len(units)
        for number, unit in enumerate(units):
            shares = [percent_left(stage, unit) for stage in stages]
            bar_offset = bar_height * (number - (len(units) - 1) / 2)
            centers = [stage_index + bar_offset for stage_index in range(len(stages))]
            axes.barh(centers, shares, height=0.9 * bar_height, color=_SERIES[number], label=unit)
            for center, share in zip(centers, shares, strict=True):
                axes.text(share + 1, center, f"{share:.1f}", va="center", color=_MUTED, fontsize=7.5)
        _categories(axes, [stage.replace("_", " ") for stage in stages])
        axes.set_xlim(0, 112)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("% of the input that is left")
        _legend_above(axes, len(units))

    label = f"Documents, bytes and tokens left by cleaning stage, {source}"
    return _svg(label, draw, 0.75 + 0.18 * len(units) * max(2, len(stages)))


def mixture_chart(mixture: Mixture) -> str:
    """Draw shares of tokens by language: as the mixture's recipe asks for, and as each stage got them."""
    bars = {"wanted": mixture.get("shares_wanted") or {}} | (mixture.get("tokens") or {})
    languages = list(dict.fromkeys(language for shares in bars.values() for language in shares))

    def draw(axes: Axes) -> None:
        bar_starts = [0.0] * len(bars)
        for index, language in enumerate(languages):
            colour = _SERIES[index % len(_SERIES)]
            widths = [100 * shares.get(language, 0) / (sum(shares.values()) or 1) for shares in bars.values()]
            axes.barh(
                range(len(bars)), widths, left=bar_starts, height=0.56, color=colour, label=_short(language)
            )
            for bar_index, (bar_start, width) in enumerate(zip(bar_starts, widths, strict=True)):
                if width >= 4:  # a narrower piece has no room for its figure
                    # Beneath the bar, since no one text colour is legible on every series in light and dark.
                    axes.text(
                        bar_start + width / 2, bar_index + 0.3, f"{width:.1f}",
                        ha="center", va="top", color=_MUTED, fontsize=8,
                    )  # fmt: skip
            bar_starts = [bar_start + width for bar_start, width in zip(bar_starts, widths, strict=True)]
        _categories(axes, list(bars))
        axes.set_ylim(len(bars) - 0.3, -0.4)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of tokens")
        _legend_above(axes, len(languages))

    return _svg("Shares of tokens by language", draw, 0.85 + 0.5 * max(2, len(bars)))


def loss_chart(title: str, curve: Sequence[CurvePoint]) -> str:
    """Draw training loss by step: every logged step faint, and a running mean over 5 % of them."""
    points = _finite_points(curve, "loss")
    # 2.5 % of the steps on either side.
    half_window = len(points) // 40
    shown_indices = _thin(range(len(points)))
    means = [
        fmean(loss for _, loss in points[max(0, index - half_window) : index + half_window + 1])
        for index in shown_indices
    ]

    def draw(axes: Axes) -> None:
        if half_window:
            axes.plot(*zip(*_thin(points), strict=True), color=_SERIES[0], alpha=0.35, linewidth=0.8)
        shown_steps = [points[index][0] for index in shown_indices]
        axes.plot(shown_steps, means, color=_SERIES[0], marker="o" if len(means) < 3 else "")
        _steps_and_loss(axes)

    return _svg(f"Training loss of {title}", draw) if points else ""


def heldout_chart(title: str, points: Sequence[HeldoutPoint]) -> str:
    """Draw held-out loss by step, by denoiser where measured, its level at step 0, and 25 % below that."""
    series = {name: _finite_points(points, name) for name in ("loss", "R", "S", "X")}
    levels = [(loss, "step 0") for step, loss in series["loss"] if step == 0]
    levels += [(0.75 * loss, "25 % below") for loss, _ in levels]

    def draw(axes: Axes) -> None:
        for (name, line), colour in zip(series.items(), (_INK, *_SERIES), strict=False):
            if line:
                label = "all" if name == "loss" else name
                steps, losses = zip(*_thin(line), strict=True)
                axes.plot(steps, losses, color=colour, marker="o", markersize=3, label=label)
        for (level, text), dashes in zip(levels, ((5, 3), (1.5, 2.5)), strict=False):
            axes.axhline(level, color=_MUTED, linewidth=0.9, dashes=dashes)
            right_margin = axes.get_yaxis_transform()
            axes.text(1.01, level, text, transform=right_margin, va="center", color=_MUTED, fontsize=8)
        _steps_and_loss(axes)
        if series["R"] or series["S"] or series["X"]:
            _legend_above(axes, 4)

    return _svg(f"Held-out loss of {title}", draw) if series["loss"] else ""


Series = tuple[str, Sequence[tuple[float, float, float | None]]]
"""A name and its points: position on the x axis, value, standard error or none."""


def lines_chart(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Draw a line for each series, with bars of one standard error."""

    def draw(axes: Axes) -> None:
        for index, (name, points) in enumerate(series):
            colour = _SERIES[index % len(_SERIES)]
            dashes = ("-", "--", ":", "-.")[index // len(_SERIES) % 4]
            x_values, y_values, errors = zip(*points, strict=True)
            error_bars = None if None in errors else errors
            axes.errorbar(
                x_values, y_values, error_bars, color=colour, linestyle=dashes, marker="o", markersize=3,
                capsize=2, elinewidth=0.8, label=_short(name),
            )  # fmt: skip
        axes.grid(axis="y")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend_above(axes, 3)

    return _svg(title, draw, 2.9 + 0.18 * (len(series) // 3)) if series else ""


def experts_chart(experts: Sequence[Training]) -> str:
    """Draw the loss on each expert's held-out data: of Stage III (hollow) and of the expert (filled)."""
    rows = [
        (training["step"], training.get("baseline_heldout"), points[-1][1])
        for training in experts
        if (points := _finite_points(training.get("heldout") or [], "loss"))
    ]

    def draw(axes: Axes) -> None:
        for row_index, (_, loss_before, loss_after) in enumerate(rows):
            if loss_before is not None:
                axes.plot([loss_before, loss_after], [row_index] * 2, color=_RULE, linewidth=3, zorder=1)
                axes.plot(
                    loss_before, row_index, "o", markersize=7, markerfacecolor="none", markeredgecolor=_MUTED
                )
            axes.plot(loss_after, row_index, "o", markersize=7, color=_SERIES[0])
        _categories(axes, [step_name for step_name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.margins(x=0.12)
        axes.set_xlabel("held-out loss (nats per token), lower is better")
        axes.plot(
            [], [], "o", markersize=6, markerfacecolor="none", markeredgecolor=_MUTED, label="Stage III"
        )
        axes.plot([], [], "o", markersize=6, color=_SERIES[0], label="expert")
        _legend_above(axes, 2)

    return _svg("Held-out loss of the experts", draw, 0.95 + 0.34 * max(2, len(rows))) if rows else ""


def _finite_points(points: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (step, value) where the value was recorded and is finite; a skipped step may have none."""
    return [
        (point["step"], point[key]) for point in points if point.get(key) is not None and isfinite(point[key])
    ]


def _thin(items: Sequence[T]) -> list[T]:
    """Return at most `MOST_POINTS` items at equal distances, and the last one."""
    stride = max(1, -(-len(items) // MOST_POINTS))
    return [*items[:-1:stride], *items[-1:]]


def _steps_and_loss(axes: Axes) -> None:
    axes.grid(axis="y")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _categories(axes: Axes, names: Sequence[str]) -> None:
    """Label rows from the top down; long names are cut, since the table beside the chart has them in full."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.spines["left"].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}..."


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        frameon=False,
        borderpad=0.2,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.4,
        labelcolor=_MUTED,
    )


def _svg(label: str, draw: Callable[[Axes], None], height: float = 2.9) -> str:
    """Return the drawing as an `<svg>` element.

    Args:
        label: what a screen reader says in place of the drawing.
        draw: draws on the axes it is given.
        height: of the drawing, in inches.
    """
    # The salt makes element ids of one page's charts differ; without a salt they differ from run to run.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": label}), warnings.catch_warnings():
        # Widths of Chinese labels are estimated without a font for them; the browser has one.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    body = buffer.getvalue()
    # matplotlib's own <style> would apply to the whole page, and its group ids repeat in every chart.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|(?<=<g) id=\"[^\"]*\"", "", body, flags=re.S)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub("|".join(_CSS_VARIABLES), lambda match: f"var(--{_CSS_VARIABLES[match.group()]})", body)
    view_box, drawing = re.search(r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>(.*)</svg>", body, re.S).groups()  # type: ignore[union-attr]
    drawing = drawing.replace("xlink:href", "href")
    return f'<svg viewBox="{view_box}" role="img" aria-label="{escape(label)}">{drawing}</svg>'
