"""Weights that no step of the pipeline made, as a user names them: `start: {weights: ...}`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openba.artifacts import Recipe


class WeightsRecipe(Recipe):
    """A model to begin from: a folder, an output of a store, a registered version, or a model of the hub."""

    weights: Annotated[str, Field(min_length=1)]
    """A model's folder (released layout or `openba export`), the output of a training in a store (a folder or
    an fsspec URL), `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or OWNER/NAME of the Hugging Face hub. A
    relative path starts at the working directory."""
    revision: str | None = None
    """Of a model of the hub: the commit, 40 hex digits, so that the same recipe means the same weights."""
    tokenizer: str | None = None
    """`spiece.model`, or a folder that has it; none: the one beside the weights."""


class WeightsStep(Recipe):
    """A step that takes weights into the store; which they are is settled by their files' digests."""

    start: WeightsRecipe
    location: str = ""
    """Folder, fsspec URL or hub id that `start.weights` stands for; empty if it is not there."""
    files: dict[str, str] = {}
    """Name below `location` -> SHA-256; none of a hub id, whose commit settles the content."""
    tokenizer_files: dict[str, str] = {}
    """Path -> SHA-256 of the files of `start.tokenizer`; none: the tokenizer is among `files`."""
