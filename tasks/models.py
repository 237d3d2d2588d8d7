"""Models as commands take them: a folder, a `models:/` address of the registry, or a trained step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openba.errors import UserError
from openba.home import Home
from openba.recipes.train import TrainStep
from tasks.graphs import read_pipeline

MODEL_FOLDER = "model"
"""Folder of the exported weights in the output of a training."""


@contextmanager
def open_model(model: str, pipeline: str) -> Iterator[tuple[str, Path]]:
    """Provide a model's name and folder for a `with` block, its digests checked where they are known.

    Args:
        model: a folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a trained step of the pipeline.
        pipeline: name or file of the pipeline that step names are looked up in.

    Raises:
        UserError: the text names no model, the step is not built, or a file is missing or damaged.
    """
    home = Home.from_environment()
    if not model.startswith("models:/") and not Path(model).exists():
        graph = read_pipeline(pipeline)
        trainings = [name for name, step in graph.steps.items() if isinstance(step.recipe, TrainStep)]
        if model not in trainings:
            raise UserError(
                f"{model}: no such folder, and no training of {pipeline} ({', '.join(trainings)}); or give "
                "models:/NAME@ALIAS"
            )
        yield model, home.store.verified_path(graph.step(model)) / MODEL_FOLDER
        return
    from tasks.serve import Source

    source = Source(model, home)
    with source.fetched(source.now()) as folder:
        yield source.name, folder
