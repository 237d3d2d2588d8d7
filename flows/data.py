"""The commands `openba data ...`: looking at what the data steps did. Owns printing only."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.home import Home

app = typer.Typer(no_args_is_help=True, help="Look at the data.", pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.callback()
def data() -> None:
    """Look at the data."""


@app.command()
def why(
    document: Annotated[str, typer.Argument(metavar="ID", help="A document's id, or source/id.")],
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Name in configs/pipeline, or a YAML file.")
    ] = "tiny",
) -> None:
    """What cleaning took out of a document, by which rule, and for a copy which document stays."""
    from openba.data.clean.removals import removals

    store, step = Home.from_environment().store, Pipeline(find_pipeline(pipeline)).step("clean")
    if store.manifest(step) is None:
        raise UserError(f"{step.key}: not built; `openba run {pipeline} --until clean` builds it")
    for row in removals(store.path(step), document):
        span = f"characters {row['start']} to {row['end']}"
        stays = f", a copy of {row['survivor']}" if row["survivor"] else ""
        told = f"{row['source']}/{row['id']}  {row['stage']}: {row['rule']}, {span}{stays}"
        console.print(told, markup=False)
