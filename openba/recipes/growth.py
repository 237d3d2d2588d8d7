"""Tokens that an expert adds to the tokenizer of the weights it begins with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from openba.artifacts import Recipe


class GrowthRecipe(Recipe):
    """Tokens to add (paper section 6.2). Old ids stay, also those of text that could be written before."""

    whitespace: bool = True
    """Newline, tab, runs of spaces and full-width forms, so that text comes back byte for byte. A tokenizer
    that keeps text already gets none."""
    tokens: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Own ones, which are one token wherever they stand in text."""

    @model_validator(mode="after")
    def _are_tokens(self) -> GrowthRecipe:
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("tokens: one is given twice; remove it")
        if marked := next((token for token in self.tokens if "\u2581" in token), None):
            raise ValueError(f"tokens: {marked!r} has U+2581, which stands for a space; write a space")
        return self
