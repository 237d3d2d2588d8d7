"""Embedding of which only the rows of new tokens are trained, beside an adapter.

Owns how the new rows come into the embedding, and by `weight` into a head that is tied to it. They are a
parameter of their own: gradients and moments of the whole matrix would be 16 GB for the 15B model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEW_ROWS = "new_rows"


class GrownEmbedding(nn.Module):
    """A frozen embedding with trained rows for the ids from `first_id` on."""

    def __init__(self, embedding: nn.Embedding, first_id: int, count: int) -> None:
        """Take the embedding, whose rows from `first_id` on are where the new ones begin."""
        super().__init__()
        self.embedding = embedding
        self.first_id = first_id
        rows = embedding.weight.detach()[first_id : first_id + count].clone()
        self.new_rows = nn.Parameter(rows)

    @property
    def weight(self) -> Tensor:
        """`[vocab, hidden]` with the new rows: a copy of the matrix, made in each pass of the head."""
        new_ids = torch.arange(len(self.new_rows), device=self.new_rows.device) + self.first_id
        return self.embedding.weight.index_copy(0, new_ids, self.new_rows)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `[tokens]` to `[tokens, hidden]`."""
        new_ids = ids - self.first_id
        is_new = (new_ids >= 0) & (new_ids < len(self.new_rows))
        new_rows = F.embedding(new_ids.clamp(0, len(self.new_rows) - 1), self.new_rows)
        return torch.where(is_new[:, None], new_rows, self.embedding(ids))
