"""The MLflow model of every registered name: a pyfunc that loads weights from the store.

MLflow imports this file when `models:/openba-flan@champion` is loaded. Its one artifact is
`pointer.json`, some 300 bytes; weights are read from the address in it and never pass through
the tracking server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

COLUMN = "prompt"
"""Column of the prompts where a table has several."""


class OpenBA(PythonModel):
    """Greedy answers to prompts; a prompt is wrapped as `<S> prompt <extra_id_0>` by the model."""

    def load_context(self, context: Any) -> None:
        """Fetch the weights if they are remote, check their digests, load them."""
        from openba.model.loading import load_model
        from openba.model.pointer import fetched_model

        pointer = json.loads(Path(context.artifacts["pointer"]).read_text(encoding="utf-8"))
        # From the store, with their digests checked: what MLflow holds is the address alone.
        with fetched_model(pointer) as folder:
            self.model, self.tokenizer = load_model(folder)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Return one answer per prompt.

        Args:
            context: MLflow's.
            model_input: texts, or a table whose only column, or column `prompt`, holds them.
            params: max_new_tokens (default 64).

        Raises:
            UserError: several columns and none is `prompt`, or a prompt is no text.
        """
        from openba.data.instruct import encode_input
        from openba.model.generate import generate

        encoder_limit = self.model.architecture.max_seq_length
        encoded_prompts = [
            encode_input(self.tokenizer, prompt, (), encoder_limit) for prompt in prompts_of(model_input)
        ]
        return generate(self.model, self.tokenizer, encoded_prompts, (params or {}).get("max_new_tokens", 64))


def prompts_of(model_input: Any) -> list[str]:
    """Return the prompts in what MLflow passes on: a text, texts, an array, a table or its columns.

    Raises:
        UserError: see `predict`.
    """
    from openba.errors import UserError

    table = model_input
    if isinstance(model_input, str):
        table = [model_input]
    if isinstance(model_input, Mapping):
        columns = {key: [value] if isinstance(value, str) else value for key, value in model_input.items()}
        table = pd.DataFrame(columns)
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame(np.asarray(table) if not isinstance(table, list) else table)
    if COLUMN not in table.columns and len(table.columns) != 1:
        names = ", ".join(map(str, table.columns)) or "none"
        raise UserError(f"columns {names}: none is {COLUMN!r}; name the column of the prompts {COLUMN!r}")
    prompt_column = table[COLUMN] if COLUMN in table.columns else table.iloc[:, 0]
    for row_number, prompt in enumerate(prompt_column):
        if not isinstance(prompt, str):
            raise UserError(f"row {row_number}: the prompt is {type(prompt).__name__}, not a text")
    return list(prompt_column)


mlflow.models.set_model(OpenBA())
