"""`python -m benchmarks GROUP [--json]`: run a group and print its figures, one per line."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Annotated

import typer

from benchmarks.figure import circumstances
from openba.errors import UserError

GROUPS = {
    "data": "benchmarks.data.figures",
    "data-cost": "benchmarks.data.cost",
    "eval": "benchmarks.evaluation.figures",
    "gpu-ready": "benchmarks.gpu.ready",
    "learning": "benchmarks.learning.figures",
    "model": "benchmarks.model.figures",
    "ner": "benchmarks.ner",
    "operations": "benchmarks.operations.figures",
    "quality": "benchmarks.quality.figures",
    "serving": "benchmarks.operations.serving",
    "soak": "benchmarks.operations.soak",
    "story": "benchmarks.operations.story",
    "train": "benchmarks.train.figures",
    "weights": "benchmarks.weights.figures",
}
"""Name of a group -> its module, with a function `figures`."""


def main(
    group: Annotated[str, typer.Argument(help=f"One of: {', '.join([*GROUPS, 'gpu'])}.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    device: Annotated[str, typer.Option(help="Of `gpu`: the device that is measured.")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="Of `gpu`: a tiny model, once each.")] = False,
) -> None:
    """Print the figures; exit code 1 if one misses its target."""
    if group == "gpu":
        from benchmarks.gpu.measure import measure

        for row in measure(device, small):
            print(json.dumps(row), flush=True)
        return
    if group not in GROUPS:
        print(f"benchmarks: {group}: no such group; there are {', '.join([*GROUPS, 'gpu'])}", file=sys.stderr)
        raise typer.Exit(2)
    is_missed = False
    try:
        # Imported by name: each group imports its own peers, some of them slow to load.
        for figure in import_module(GROUPS[group]).figures():
            print(json.dumps(figure.row()) if as_json else figure.line(), flush=True)
            is_missed |= figure.ok is False
    except UserError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    print(json.dumps(circumstances()), flush=True)
    raise typer.Exit(1 if is_missed else 0)


if __name__ == "__main__":
    typer.run(main)
