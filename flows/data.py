"""`openba data ...`: look at the data of a pipeline. Owns arguments and printing only."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.graphs import read_pipeline
from openba.artifacts import Step
from openba.errors import UserError
from openba.home import Home
from openba.json_types import JsonObject
from openba.recipes.data import CorpusRecipe
from openba.recipes.train import TrainStep
from openba.units import human

if TYPE_CHECKING:  # the filters take seconds to load
    from openba.data.clean.removals import Removal

app = typer.Typer(no_args_is_help=True, help="Look at the data of a pipeline.")
console = Console(highlight=False, soft_wrap=True)


@app.command()
def preview(
    step: Annotated[
        str | None,
        typer.Argument(help="A stage or an expert, such as stage3 or chat; the first stage if none."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="How many to show.", min=1)] = 3,
    pipeline: Annotated[str, typer.Option("--pipeline", "-p", help="Name or YAML file.")] = "tiny",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a setting.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print samples as the model sees them, masks marked; lengths, fill and mixture of the first thousand."""
    graph = read_pipeline(pipeline, overrides)
    home = Home.from_environment()
    training = graph.step(step or graph.config.first_stage or next(iter(graph.experts)))
    if not isinstance(training.recipe, TrainStep):
        names = ", ".join([*graph.config.stages, *graph.experts])
        raise UserError(f"{step}: not a training; give one of {names}")
    from openba.tokenizer.tokenizer import Tokenizer
    from openba.train.preview import preview as look

    folders = {key: _built(home, training.inputs[key], pipeline, overrides) for key in ("data", "tokenizer")}
    tokenizer = Tokenizer.load(folders["tokenizer"])
    part = training.recipe.part
    shown = look(training.recipe.train, folders["data"], part, tokenizer, samples)
    if as_json:
        print(json.dumps(shown, ensure_ascii=False, indent=1))
    else:
        _print(shown)


@app.command()
def why(
    document: Annotated[str, typer.Argument(metavar="ID", help="A document's id, or source/id.")],
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Name in configs/pipeline, or a YAML file.")
    ] = "tiny",
) -> None:
    """Print what cleaning removed from a document, by which rule, and for a copy the document that stays."""
    from openba.data.clean.removals import removals

    home = Home.from_environment()
    graph = read_pipeline(pipeline)
    step = graph.step("clean")
    rows = removals(_built(home, step, pipeline), document)
    for row, pieces in zip(rows, _pieces(home, step, rows), strict=True):
        span = f"characters {row['start']} to {row['end']}"
        stays = f", a copy of {row['survivor']}" if row["survivor"] else ""
        line = f"{row['source']}/{row['id']}  {row['stage']}: {row['rule']}, {span}{stays}"
        console.print(line, markup=False)
        for piece in pieces:
            console.print(f"    {piece}", markup=False)


def _pieces(home: Home, clean: Step, rows: list[Removal]) -> list[list[str]]:
    """Return the text of each removal, the removed part marked; none where the source's output is gone."""
    from openba.data.clean.removals import original
    from openba.data.clean.replay import replay

    pieces: list[list[str]] = [[] for _ in rows]
    assert isinstance(clean.recipe, CorpusRecipe)
    for source, identifier in dict.fromkeys((row["source"], row["id"]) for row in rows):
        step = clean.inputs[source]
        recipe = clean.recipe.sources[source]
        numbers = [n for n, row in enumerate(rows) if (row["source"], row["id"]) == (source, identifier)]
        if recipe is None or home.store.manifest(step) is None:
            continue
        if (text := original(home.store.path(step), identifier)) is not None:
            for number, shown in zip(numbers, replay(text, recipe, [rows[n] for n in numbers]), strict=True):
                pieces[number] = shown
    return pieces


def _built(home: Home, step: Step, pipeline: str, overrides: list[str] | None = None) -> Any:
    if home.store.manifest(step) is None:
        settings = "".join(f" --set {shlex.quote(text)}" for text in overrides or [])
        command = f"openba run {shlex.quote(pipeline)} --until {step.name}{settings}"
        raise UserError(f"{step.key}: not built yet; `{command}` builds it")
    return home.store.path(step)


def _print(shown: JsonObject) -> None:
    for line in shown["clipped"]:
        console.print(f"note: {line}", markup=False)
    for number, sample in enumerate(shown["samples"]):
        for side, tokens in (("encoder", "encoder_tokens"), ("labels", "label_tokens")):
            console.print(f"[bold]sample {number}, {side}[/], {sample[tokens]} tokens")
            console.print(f"  {sample[side]}", markup=False)
    table = Table(
        "lengths", "limit", "longest", "at limit", "mean fill", "samples by tenths of the limit", box=None
    )
    for side, row in shown["lengths"].items():
        bars = " ".join(str(count) for count in row["histogram"])
        cells = (str(row["limit"]), str(row["longest"]), str(row["at_limit"]), f"{row['fill']:.1%}", bars)
        table.add_row(side, *cells)
    console.print(table)
    total_tokens = sum(shown["mixture"].values()) or 1
    parts = [
        f"{name} {human(count)} ({count / total_tokens:.1%})" for name, count in shown["mixture"].items()
    ]
    console.print(f"mixture: {', '.join(parts)}", markup=False)
    console.print(
        f"{shown['measured']:,} samples measured; the budget sees the data {shown['epochs']:.2f} times"
    )
