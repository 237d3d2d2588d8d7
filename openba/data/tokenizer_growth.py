"""Step `tokenizer-*`: a tokenizer with more tokens, for an expert (paper section 6.2)."""

from __future__ import annotations

import json
import shutil
from typing import TypedDict

from openba.artifacts import Build
from openba.errors import UserError
from openba.recipes.growth import GrowthRecipe
from openba.tokenizer.pieces_openba import LOSSLESS, MODEL_FILE
from openba.tokenizer.tokenizer import CONFIG_FILE, GROWN, SWITCH, Tokenizer

_HARD_TEXT = "\n\tif x:\n        y  =  \u3000\uff21\uff0c z \n"
"""Line breaks, indentation, runs of spaces, full-width forms: what normalisation changes."""


class Facts(TypedDict):
    """Facts that the step records in its manifest."""

    vocab: int
    """Ids, the added ones included."""
    added: list[str]


def build(build: Build) -> Facts:
    """Copy the tokenizer and note the tokens that it gets.

    Raises:
        UserError: a token is one already, or the tokenizer takes none.
    """
    recipe: GrowthRecipe = build.recipe
    tokenizer = Tokenizer.load(build.inputs["tokenizer"])
    keeps_text = tokenizer.decode(tokenizer.encode(_HARD_TEXT)) == _HARD_TEXT
    whitespace = LOSSLESS if recipe.whitespace and not keeps_text else ()
    control_tokens = tokenizer.pieces.control_tokens()
    for token in recipe.tokens:
        if token in control_tokens or token in whitespace or _is_piece(tokenizer, token):
            raise UserError(f"grow.tokens: {token!r} is a token already; remove it")
    added_tokens = [*whitespace, *recipe.tokens]
    shutil.copyfile(tokenizer.path, build.out / MODEL_FILE)
    config = {SWITCH: tokenizer.whitespace, GROWN: [*tokenizer.grown, *added_tokens]}
    (build.out / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return Facts(vocab=Tokenizer.load(build.out).size, added=added_tokens)


def _is_piece(tokenizer: Tokenizer, token: str) -> bool:
    return tokenizer.pieces.id(token.replace(" ", "\u2581")) != tokenizer.unknown
