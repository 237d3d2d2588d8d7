"""`openba export`: write a model in another file format. Owns arguments; `openba.model.export` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from openba.errors import UserError
from tasks.models import open_model


def export(
    model: Annotated[
        str, typer.Argument(help="Folder of a model, models:/NAME@ALIAS, or a trained step such as stage3.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write to; it must be missing or empty.")],
    form: Annotated[
        str, typer.Option("--format", help="Format to write: safetensors, released or ctranslate2.")
    ],
    quantization: Annotated[
        str, typer.Option(help="float32, float16, bfloat16, int16, int8, int8_float16 or int8_bfloat16.")
    ] = "float32",
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Pipeline that the name of a step is looked up in.")
    ] = "tiny",
) -> None:
    """Write a model as safetensors for transformers, in the released layout, or for CTranslate2."""
    from openba.model.export import Format, check_form
    from openba.model.export import export as write

    check_form(form)
    if quantization != "float32" and form != "ctranslate2":
        raise UserError(f"--quantization: the form {form} has none; leave it out, or take ctranslate2")
    with open_model(model, pipeline) as (_, folder):
        write(folder, out, cast(Format, form), quantization)
    typer.echo(str(out))
