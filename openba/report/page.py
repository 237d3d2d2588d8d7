"""`render`: the report's facts as one self-contained HTML page.

Owns formatting and the rule that a missing figure reads "not run", never 0. The facts' form is
`schema`'s, charts are `charts`'s, words and layout `template.html`'s; nothing here computes a result.
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
from openba.report.ablation import ablation_charts
from openba.report.evolution import evolution_chart
from openba.report.examples import groups
from openba.report.paper_tables import paper_tables
from openba.report.schema import Example, Report, StepState, Training
from openba.report.skills import skills
from openba.units import human, human_time


def render(report: Report) -> str:
    """The page: inline style and SVG, no script, nothing loaded; every text from data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: _or_not_run(write) for name, write in _WRITERS.items()}
    environment.filters |= {"difference": _difference, "error": _error, "on_bar": _on_bar}
    training = report.get("training") or []
    rows = skills(report.get("evaluations") or [])
    stages = [run for run in training if run.get("baseline_heldout") is None]
    experts = [run for run in training if run.get("baseline_heldout") is not None]
    page = environment.get_template("template.html").render(
        report=report,
        made=_made(report),
        skills=rows,
        examples=groups(rows),
        commands=_commands(report),
        folded=_folded(report.get("steps") or []),
        verdict=_verdict(report.get("steps") or []),
        stages=stages,
        experts=experts,
        totals=_totals(training),
        carbon_table=carbon_table.ROWS,
        charts=_charts(report, stages, experts),
        ablation=[(told, Markup(svg)) for told, svg in ablation_charts(report.get("ablation") or [])],  # noqa: S704
        tables=paper_tables(report.get("evaluations") or []),
    )
    return _TABLE.sub(_label_cells, page)


_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_LANGUAGES = {"zh": "Chinese", "en": "English", "code": "code"}


def _label_cells(table: re.Match[str]) -> str:
    """A table whose cells name their column: on a telephone each row is a list of them."""
    heads = [
        re.sub(r"<[^>]*>", "", head).replace('"', "&quot;")
        for head in re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)
    ]

    def label_row(row: re.Match[str]) -> str:
        names = iter(heads)
        return re.sub(r"<td(?=[ >])", lambda _: f'<td data-label="{next(names, "")}"', row[0])

    return re.sub(r"<tr>.*?</tr>", label_row, table[0], flags=re.DOTALL)


def _made(report: Report) -> dict[str, Any]:
    """What the run left: number and size of models, tokens that they were trained on, languages."""
    training = report.get("training") or []
    shares = (report.get("mixture") or {}).get("shares_wanted") or {}
    names = [_LANGUAGES.get(language, language) for language in shares]
    return {
        "models": len(training),
        "parameters": max((run.get("parameters") or 0 for run in training), default=None) or None,
        "tokens": sum(run.get("tokens") or 0 for run in training),
        "languages": " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "text",
    }


def _commands(report: Report) -> list[tuple[str, str]]:
    """What to do with the models, as commands: (what it does, command)."""
    rows = [row for row in report.get("registry") or [] if "champion" in row["alias"]]
    talker = next((row for row in rows if row["name"].endswith("chat")), rows[0] if rows else None)
    if talker is None:
        return []
    name, uri = talker["name"], talker.get("uri")
    commands = [("Talk to it on a page of its own", f"openba serve models:/{name}@champion")]
    if uri:
        commands.append(("Score it on more benchmarks", f"openba eval {uri} --suite quick --out results/new"))
        commands.append(
            ("Compare it with another", "openba compare results/old results/new --page differences.html")
        )
    return commands


def _folded(steps: list[StepState]) -> dict[str, bool]:
    """Sections that only repeat what an earlier run has built."""
    data = [step for step in steps if (step.get("title") or "").startswith("openba.data")]
    return {
        name: bool(chosen) and all(step["state"] == "cached" for step in chosen)
        for name, chosen in (("steps", steps), ("data", data))
    }


def _verdict(steps: list[StepState]) -> dict[str, str]:
    """The first line of the page: what happened, and its colour (`good`, `bad`, `unknown`)."""
    counts = Counter(step["state"] for step in steps)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    if not steps:
        return {"tone": "unknown", "text": "No step was run."}
    if counts["failed"]:
        names = ", ".join(step["name"] for step in steps if step["state"] == "failed")
        return {"tone": "bad", "text": f"Failed at {names}: {told}."}
    if counts.keys() - {"built", "cached"}:
        return {"tone": "unknown", "text": f"Incomplete: {told}."}
    return {"tone": "good", "text": f"All {len(steps)} steps complete: {told}."}


def _totals(training: list[Training]) -> dict[str, float | None]:
    """Sums of the runs' costs; None where a run lacks the figure, as a part is not a total."""
    names = (
        "flops", "flops_useful", "flops_hardware", "device_hours", "energy_kwh_paper", "tco2eq_paper",
        "energy_joules_measured", "energy_kwh_measured", "tco2eq_measured",
        "energy_kwh_estimated", "tco2eq_estimated", "money",
    )  # fmt: skip
    costs: list[dict[str, Any]] = [run.get("cost") or {} for run in training]
    figures: dict[str, list[Any]] = {name: [cost.get(name) for cost in costs] for name in names}
    return {name: sum(column) if column and None not in column else None for name, column in figures.items()}


def _charts(report: Report, stages: list[Training], experts: list[Training]) -> dict[str, Any]:
    """SVG by place; matplotlib is imported only when there is something to draw."""
    if not (report.get("funnel") or report.get("mixture") or report.get("training")):
        return {}
    from openba.report import charts

    mixture, funnel = report.get("mixture") or {}, report.get("funnel") or []
    filtered = [row for row in funnel if row["stage"] != "unfiltered"] or funnel
    drawn = {
        "evolution": evolution_chart(report),
        "funnel": charts.funnel_chart(filtered) if funnel else "",
        "mixture": charts.mixture_chart(mixture) if mixture.get("tokens") else "",
        "experts": charts.experts_chart(experts),
    }
    for source in dict.fromkeys(row["source"] for row in filtered):
        mine = [row for row in filtered if row["source"] == source]
        drawn[f"funnel {source}"] = charts.funnel_chart(mine, source)
    for run in stages + experts:
        drawn[f"loss {run['step']}"] = charts.loss_chart(run["title"], run.get("curve") or [])
        drawn[f"heldout {run['step']}"] = charts.heldout_chart(run["title"], run.get("heldout") or [])
    return {place: Markup(svg) for place, svg in drawn.items()}  # noqa: S704  charts escape their labels


def _difference(example: Example) -> list[tuple[str, str]]:
    """The text before cleaning in pieces, `same`, `del` or `ins`: by Latin word, by other character."""
    before, after = (re.findall(r"[A-Za-z0-9]+|.", example[side], re.S) for side in ("before", "after"))
    pieces: list[tuple[str, str]] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(before[i1:i2])))
        else:
            pieces += [("del", "".join(before[i1:i2])), ("ins", "".join(after[j1:j2]))]
    return pieces


def _or_not_run(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """The writer as a template filter that says "not run" for a value that is missing or not a number."""

    def written(value: Any) -> str:
        missing = value is None or isinstance(value, ChainableUndefined) or value == ""
        if missing or (isinstance(value, float) and not math.isfinite(value)):
            return Markup('<span class="none">not run</span>')
        return write(value)

    return written


def _score(value: float) -> str:
    """One decimal, or none from 100 on, where it says nothing."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _error(stderr: Any) -> str:
    """A standard error behind its score; nothing where there is none, as of a score that cannot vary."""
    if not isinstance(stderr, float | int) or not math.isfinite(stderr) or round(stderr, 1) == 0:
        return ""
    return Markup(' <span class="aside">&plusmn; {}</span>').format(_score(stderr))


def _on_bar(value: float) -> str:
    """A score's place on a bar from 0 to 100, in percent of it."""
    return f"{min(100.0, max(0.0, value)):.1f}"


def _power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return Markup("{}&times;10<sup>{}</sup>").format(mantissa, int(exponent)) if value else escape("0")


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    """Three digits in the largest unit that gives at least 1, or in the smallest."""
    scale, unit = next(((scale, unit) for scale, unit in units if abs(value) >= scale), units[-1])
    return f"{value / scale:.3g} {unit}"


_WRITERS: dict[str, Callable[[Any], str]] = {
    "text": escape,
    "count": lambda value: f"{value:,}",
    "human": human,
    "number": lambda value: f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}",
    "score": _score,
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
