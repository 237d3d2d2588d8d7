"""Rows of embedding and head for tokens that a tokenizer gets after the weights were trained."""

from __future__ import annotations

from torch import Tensor

from openba.tokenizer.tokenizer import Tokenizer

_BY_WORD = ("shared_embedding.weight", "lm_head.weight", "lm_head.bias")
"""Tensors with a row for each id."""


def grow_rows(
    weights: dict[str, Tensor], start_tokenizer: Tokenizer, tokenizer: Tokenizer, rows: int
) -> dict[str, Tensor]:
    """Return weights with a row of embedding and head for every id of a grown tokenizer.

    The row of a new token is the mean of its pieces' rows, so that it means at first what the pieces mean
    together. Old rows stay.

    Args:
        weights: of the start, by name.
        start_tokenizer: of the start.
        tokenizer: the grown one.
        rows: of the new tensors; those beyond the tokenizer's ids are as the start's, or zero.
    """
    new_ids = range(start_tokenizer.size, tokenizer.size)
    pieces_of = {new_id: _pieces_of(start_tokenizer, tokenizer.pieces.piece(new_id)) for new_id in new_ids}
    grown_weights = dict(weights)
    for name in _BY_WORD:
        if name not in weights:
            continue
        old_rows = weights[name]
        kept_count = min(rows, len(old_rows))
        new_rows = old_rows.new_zeros((rows, *old_rows.shape[1:]))
        new_rows[:kept_count] = old_rows[:kept_count]
        for new_id, piece_ids in pieces_of.items():
            new_rows[new_id] = old_rows[piece_ids].float().mean(0).to(old_rows.dtype)
        grown_weights[name] = new_rows
    return grown_weights


def _pieces_of(tokenizer: Tokenizer, piece: str) -> list[int]:
    """Ids of the pieces that a new token was written with before; of what was lost, those of its bytes."""
    text = piece.replace("\u2581", " ")
    space_id = tokenizer.pieces.id("\u2581")
    piece_ids = [token_id for token_id in tokenizer.encode(text) if token_id != space_id]
    if piece_ids:
        return piece_ids
    if not text.strip(" "):
        return [space_id]
    return [3 + byte for byte in text.encode()]
