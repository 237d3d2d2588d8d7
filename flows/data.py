"""`openba data`: inspect the data of a pipeline. Owns arguments and printing only."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from openba.artifacts import Step
from openba.errors import UserError
from openba.home import Home
from openba.json_types import JsonObject
from openba.recipes.data import CorpusRecipe
from openba.recipes.train import TrainStep
from openba.units import human
from tasks.graphs import read_pipeline

if TYPE_CHECKING:  # the filters take seconds to load
    from openba.data.clean.removals import Removal

app = typer.Typer(no_args_is_help=True, help="Inspect the data of a pipeline.")
console = Console(highlight=False, soft_wrap=True)


@app.command()
def preview(
    step: Annotated[
        str | None,
        typer.Argument(help="A stage or an expert, such as stage3 or chat; by default the first stage."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="Number of samples to print.", min=1)] = 3,
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Name in configs/pipeline, or a YAML file.")
    ] = "tiny",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override of a setting, such as stages.stage2.batch=8.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print samples as the model gets them, and the lengths, fill and mixture of the first thousand."""
    graph = read_pipeline(pipeline, overrides)
    home = Home.from_environment()
    training = graph.step(step or graph.config.first_stage or next(iter(graph.experts)))
    if not isinstance(training.recipe, TrainStep):
        training_names = ", ".join([*graph.config.stages, *graph.experts])
        raise UserError(f"{step}: not a training; give one of {training_names}")
    from openba.tokenizer.tokenizer import Tokenizer
    from openba.train.preview import preview as preview_of

    input_folders = {
        key: _built(home, training.inputs[key], pipeline, overrides) for key in ("data", "tokenizer")
    }
    tokenizer = Tokenizer.load(input_folders["tokenizer"])
    mixture_part = training.recipe.part
    preview_facts = preview_of(training.recipe.train, input_folders["data"], mixture_part, tokenizer, samples)
    if as_json:
        print(json.dumps(preview_facts, ensure_ascii=False, indent=1))
    else:
        _print(preview_facts)


@app.command()
def why(
    document: Annotated[str, typer.Argument(metavar="ID", help="A document's id, or source/id.")],
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Name in configs/pipeline, or a YAML file.")
    ] = "tiny",
) -> None:
    """Print what cleaning removed from a document and by which rule; for a copy, which document was kept."""
    from openba.data.clean.removals import removals

    home = Home.from_environment()
    graph = read_pipeline(pipeline)
    step = graph.step("clean")
    rows = removals(_built(home, step, pipeline), document)
    for removal, removal_pieces in zip(rows, _pieces(home, step, rows), strict=True):
        span_text = f"characters {removal['start']} to {removal['end']}"
        copy_note = f", a copy of {removal['survivor']}" if removal["survivor"] else ""
        document_key = f"{removal['source']}/{removal['id']}"
        console.print(
            f"{document_key}  {removal['stage']}: {removal['rule']}, {span_text}{copy_note}", markup=False
        )
        for piece in removal_pieces:
            console.print(f"    {piece}", markup=False)


@app.command()
def report(
    pipeline: Annotated[
        str, typer.Argument(metavar="PIPELINE", help="Name in configs/pipeline, or a YAML file.")
    ] = "tiny",
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("corpus.html"),
) -> None:
    """Write one page about the cleaned corpus: lengths, languages, removals by rule, copies and examples."""
    from openba.report.corpus import render

    home = Home.from_environment()
    step = read_pipeline(pipeline).step("clean")
    folder = _built(home, step, pipeline)
    manifest = home.store.manifest(step)
    assert manifest is not None  # `_built` has seen it
    out.write_text(render(pipeline, folder, manifest["facts"]), encoding="utf-8")
    console.print(f"{out}", markup=False)


def _pieces(home: Home, clean: Step, rows: list[Removal]) -> list[list[str]]:
    """Return the text of each removal, the removed part marked; empty where the source's output is gone."""
    from openba.data.clean.removals import original
    from openba.data.clean.replay import replay

    pieces: list[list[str]] = [[] for _ in rows]
    assert isinstance(clean.recipe, CorpusRecipe)
    for source_name, document_id in dict.fromkeys((row["source"], row["id"]) for row in rows):
        source_step = clean.inputs[source_name]
        clean_recipe = clean.recipe.sources[source_name]
        numbers = [
            index
            for index, row in enumerate(rows)
            if (row["source"], row["id"]) == (source_name, document_id)
        ]
        if clean_recipe is None or home.store.manifest(source_step) is None:
            continue
        if (source_text := original(home.store.path(source_step), document_id)) is not None:
            for number, marked_text in zip(
                numbers, replay(source_text, clean_recipe, [rows[index] for index in numbers]), strict=True
            ):
                pieces[number] = marked_text
    return pieces


def _built(home: Home, step: Step, pipeline: str, overrides: list[str] | None = None) -> Any:
    if home.store.manifest(step) is None:
        set_options = "".join(f" --set {shlex.quote(override)}" for override in overrides or [])
        run_command = f"openba run {shlex.quote(pipeline)} --until {step.name}{set_options}"
        raise UserError(f"{step.key}: not built yet; `{run_command}` builds it")
    return home.store.path(step)


def _print(preview_facts: JsonObject) -> None:
    for clipped_note in preview_facts["clipped"]:
        console.print(f"note: {clipped_note}", markup=False)
    for sample_number, sample in enumerate(preview_facts["samples"]):
        for side, length_key in (("encoder", "encoder_tokens"), ("labels", "label_tokens")):
            console.print(f"[bold]sample {sample_number}, {side}[/], {sample[length_key]} tokens")
            console.print(f"  {sample[side]}", markup=False)
    length_table = Table(
        "lengths", "limit", "longest", "at limit", "mean fill", "samples by tenths of the limit", box=None
    )
    for side, row in preview_facts["lengths"].items():
        histogram_text = " ".join(str(count) for count in row["histogram"])
        length_cells = (
            str(row["limit"]),
            str(row["longest"]),
            str(row["at_limit"]),
            f"{row['fill']:.1%}",
            histogram_text,
        )
        length_table.add_row(side, *length_cells)
    console.print(length_table)
    total_tokens = sum(preview_facts["mixture"].values()) or 1
    share_texts = [
        f"{group_name} {human(count)} ({count / total_tokens:.1%})"
        for group_name, count in preview_facts["mixture"].items()
    ]
    console.print(f"mixture: {', '.join(share_texts)}", markup=False)
    console.print(
        f"{preview_facts['measured']:,} samples measured; the budget is {preview_facts['epochs']:.2f} epochs"
    )
