"""Render the facts of a report as one self-contained HTML page.

Owns formatting and the rule that a missing figure reads "not run", never 0. `schema` has the form of the
facts, `charts` the drawings, `template.html` words and layout; nothing here computes a result.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup, escape

from openba.accounting import carbon_table
from openba.json_types import JsonObject
from openba.report.ablation import ablation_charts
from openba.report.evolution import evolution_chart
from openba.report.examples import example_groups
from openba.report.paper_tables import paper_tables
from openba.report.schema import Example, Report, StepState, Training
from openba.report.skills import skills
from openba.units import human, human_time


def render(report: Report) -> str:
    """Return the page: style and SVG inline, no script, nothing loaded from elsewhere, all data escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # A key that is missing at any depth prints as "not run" instead of ending the page.
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: _or_not_run(formatter) for name, formatter in _FORMATTERS.items()}
    # A missing standard error prints nothing, in place of "not run".
    environment.filters |= {"difference": _text_difference, "error": _score_error, "on_bar": _bar_percent}
    trainings = report.get("training") or []
    skill_rows = skills(report.get("evaluations") or [])
    stages = [training for training in trainings if training.get("baseline_heldout") is None]
    experts = [training for training in trainings if training.get("baseline_heldout") is not None]
    page = environment.get_template("template.html").render(
        report=report,
        made=_model_summary(report),
        skills=skill_rows,
        examples=example_groups(skill_rows),
        commands=_next_commands(report),
        folded=_cached_sections(report.get("steps") or []),
        verdict=_run_verdict(report.get("steps") or []),
        stages=stages,
        experts=experts,
        totals=_total_costs(trainings),
        carbon_table=carbon_table.ROWS,
        charts=_charts(report, stages, experts),
        ablation=[
            (caption, Markup(svg))  # noqa: S704
            for caption, svg in ablation_charts(report.get("ablation") or [])
        ],
        tables=paper_tables(report.get("evaluations") or []),
    )
    return _TABLE.sub(_label_cells, page)


_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_LANGUAGES = {"zh": "Chinese", "en": "English", "code": "code"}


def _label_cells(table: re.Match[str]) -> str:
    """Return a table whose cells name their column: a narrow screen shows each row as a list of them."""
    column_names = [
        re.sub(r"<[^>]*>", "", head).replace('"', "&quot;")
        for head in re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)
    ]

    def label_row(row: re.Match[str]) -> str:
        remaining_names = iter(column_names)
        return re.sub(r"<td(?=[ >])", lambda _: f'<td data-label="{next(remaining_names, "")}"', row[0])

    return re.sub(r"<tr>.*?</tr>", label_row, table[0], flags=re.DOTALL)


def _model_summary(report: Report) -> JsonObject:
    """Return number and size of the trained models, their training tokens and languages."""
    trainings = report.get("training") or []
    shares_wanted = (report.get("mixture") or {}).get("shares_wanted") or {}
    language_names = [_LANGUAGES.get(language, language) for language in shares_wanted]
    joined_names = " and ".join(filter(None, (", ".join(language_names[:-1]), *language_names[-1:])))
    return {
        "models": len(trainings),
        "parameters": max((training.get("parameters") or 0 for training in trainings), default=None) or None,
        "tokens": sum(training.get("tokens") or 0 for training in trainings),
        "languages": joined_names or "text",
    }


def _next_commands(report: Report) -> list[tuple[str, str]]:
    """Return what can be done with the models next: (purpose, command)."""
    champions = [row for row in report.get("registry") or [] if "champion" in row["alias"]]
    # A reader expects a page to talk on; without a chat model any champion answers there.
    served_model = next(
        (row for row in champions if row["name"].endswith("chat")), champions[0] if champions else None
    )
    if served_model is None:
        return []
    address = f"models:/{served_model['name']}@champion"
    # Benchmarks whose data this run had; a suite's data is the reader's to provide.
    benchmarks = " ".join([*dict.fromkeys(row["benchmark"] for row in report.get("evaluations") or [])][:2])
    return [
        ("Talk to it on a page of its own", f"openba serve {address}"),
        (
            "Score it on more benchmarks",
            f"openba eval {address} {benchmarks or '--suite quick'} --out results/new",
        ),
        ("Compare it with another", "openba compare results/old results/new --page differences.html"),
    ]


def _cached_sections(steps: list[StepState]) -> dict[str, bool]:
    """Return which sections repeat what an earlier run built; the page shows them folded."""
    data_steps = [step for step in steps if (step.get("title") or "").startswith("openba.data")]
    return {
        section: bool(section_steps) and all(step["state"] == "cached" for step in section_steps)
        for section, section_steps in (("steps", steps), ("data", data_steps))
    }


def _run_verdict(steps: list[StepState]) -> dict[str, str]:
    """Return the first line of the page, with a tone (`good`, `bad`, `unknown`) that gives its colour."""
    counts = Counter(step["state"] for step in steps)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    if not steps:
        return {"tone": "unknown", "text": "No step was run."}
    if counts["failed"]:
        failed_steps = ", ".join(step["name"] for step in steps if step["state"] == "failed")
        return {"tone": "bad", "text": f"Failed at {failed_steps}: {summary}."}
    if counts.keys() - {"built", "cached"}:
        return {"tone": "unknown", "text": f"Incomplete: {summary}."}
    return {"tone": "good", "text": f"All {len(steps)} steps complete: {summary}."}


def _total_costs(trainings: list[Training]) -> dict[str, float | None]:
    """Return the sum of each cost; None where a training lacks the figure, as a part is not a total."""
    cost_names = (
        "flops", "flops_useful", "flops_hardware", "device_hours", "energy_kwh_paper", "tco2eq_paper",
        "energy_joules_measured", "energy_kwh_measured", "tco2eq_measured",
        "energy_kwh_estimated", "tco2eq_estimated", "money",
    )  # fmt: skip
    costs = [training.get("cost") or {} for training in trainings]
    columns: dict[str, list[Any]] = {
        cost_name: [cost.get(cost_name) for cost in costs] for cost_name in cost_names
    }
    return {
        cost_name: sum(column) if column and None not in column else None
        for cost_name, column in columns.items()
    }


def _charts(report: Report, stages: list[Training], experts: list[Training]) -> dict[str, Markup]:
    """Return the page's charts as SVG by chart name; matplotlib is imported only if there are data."""
    if not (report.get("funnel") or report.get("mixture") or report.get("training")):
        return {}
    from openba.report import charts

    mixture = report.get("mixture") or {}
    funnel = report.get("funnel") or []
    cleaned_rows = [row for row in funnel if row["stage"] != "unfiltered"] or funnel
    drawings = {
        "evolution": evolution_chart(report),
        "funnel": charts.funnel_chart(cleaned_rows) if funnel else "",
        "mixture": charts.mixture_chart(mixture) if mixture.get("tokens") else "",
        "experts": charts.experts_chart(experts),
    }
    for source in dict.fromkeys(row["source"] for row in cleaned_rows):
        source_rows = [row for row in cleaned_rows if row["source"] == source]
        drawings[f"funnel {source}"] = charts.funnel_chart(source_rows, source)
    for training in stages + experts:
        step_name = training["step"]
        title = training["title"]
        drawings[f"loss {step_name}"] = charts.loss_chart(title, training.get("curve") or [])
        drawings[f"heldout {step_name}"] = charts.heldout_chart(title, training.get("heldout") or [])
    # Not escaped again: the charts escape every label that comes from data.
    return {chart_name: Markup(svg) for chart_name, svg in drawings.items()}  # noqa: S704


def _text_difference(example: Example) -> list[tuple[str, str]]:
    """Return the text before cleaning as pieces `same`, `del` or `ins`, cut at Latin words and characters."""
    before, after = (re.findall(r"[A-Za-z0-9]+|.", example[side], re.S) for side in ("before", "after"))
    pieces: list[tuple[str, str]] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for operation, before_start, before_end, after_start, after_end in matcher.get_opcodes():
        text_before = "".join(before[before_start:before_end])
        if operation == "equal":
            pieces.append(("same", text_before))
        else:
            pieces += [("del", text_before), ("ins", "".join(after[after_start:after_end]))]
    return pieces


def _or_not_run(formatter: Callable[[Any], str]) -> Callable[[object], str]:
    """Return the formatter as a template filter that prints "not run" for a missing or non-finite value."""

    def format_or_not_run(value: object) -> str:
        is_missing = value is None or isinstance(value, ChainableUndefined) or value == ""
        if is_missing or (isinstance(value, float) and not math.isfinite(value)):
            return Markup('<span class="none">not run</span>')
        return formatter(value)

    return format_or_not_run


def _format_score(value: float) -> str:
    """Return a score with one decimal; without decimals from 100 on, where the error is above 1."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _score_error(stderr: object) -> str:
    """Return a standard error to print behind its score; empty where there is none or it rounds to 0."""
    if not isinstance(stderr, float | int) or not math.isfinite(stderr) or round(stderr, 1) == 0:
        return ""
    return Markup(' <span class="aside">&plusmn; {}</span>').format(_format_score(stderr))


def _bar_percent(value: float) -> str:
    """Return the position of a score on a bar from 0 to 100, in percent of the bar."""
    return f"{min(100.0, max(0.0, value)):.1f}"


def _power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return Markup("{}&times;10<sup>{}</sup>").format(mantissa, int(exponent)) if value else escape("0")


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    """Return three digits in the largest unit in which the value is at least 1, else in the smallest."""
    scale, unit = next(((scale, unit) for scale, unit in units if abs(value) >= scale), units[-1])
    return f"{value / scale:.3g} {unit}"


_FORMATTERS: dict[str, Callable[[Any], str]] = {
    "text": escape,
    "count": lambda value: f"{value:,}",
    "human": human,
    "number": lambda value: f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}",
    "score": _format_score,
    "signed": lambda value: f"{value:+.3f}".replace("-", "\N{MINUS SIGN}"),
    "loss": lambda value: f"{value:.3f}",
    "percent": lambda value: f"{100 * value:.2g} %" if 0 < abs(value) < 1e-3 else f"{100 * value:.1f} %",
    "change": lambda value: f"{100 * value:+.1f} %".replace("-", "\N{MINUS SIGN}"),
    "flops": _power_of_ten,
    "bytes": lambda value: _scaled(value, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")]),
    "device_hours": lambda value: _scaled(60 * value, [(60, "device hours"), (1, "device minutes")]),
    "hours": lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
    "kwh": lambda value: _scaled(value, [(1e3, "MWh"), (1, "kWh"), (1e-3, "Wh"), (1e-6, "mWh")]),
    "joules": lambda value: _scaled(value, [(1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"), (1, "J")]),
    "tonnes": lambda value: _scaled(value, [(1, "t"), (1e-3, "kg"), (1e-6, "g"), (1e-9, "mg")]),
    "duration": lambda value: f"{value:.1f} s" if value < 60 else human_time(value),
    "moment": lambda value: f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}",
}
