"""The MLflow model of every registered name: a pyfunc that loads weights from the store.

MLflow imports this file when `models:/openba-flan@champion` is loaded. Its one artifact is
`pointer.json`, some 300 bytes; weights are read from the address in it and never pass through
the tracking server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel


class OpenBA(PythonModel):
    """Greedy answers to prompts; a prompt is wrapped as `<S> prompt <extra_id_0>` by the model."""

    def load_context(self, context: Any) -> None:
        """Fetch the weights if they are remote, check their digests, load them."""
        from openba.artifacts import fetched
        from openba.model.files import load_model

        pointer = json.loads(Path(context.artifacts["pointer"]).read_text())
        with fetched(pointer["uri"], pointer["files"]) as folder:
            self.model, self.tokenizer = load_model(folder / "model")

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """One answer per prompt, given as a list or as a column. `params`: max_new_tokens (default 64).

        A hint of `list[str]` would make MLflow put an own signature in place of ours, which has no params.
        """
        from openba.data.instruct import encode_input
        from openba.model.generate import generate

        limit = self.model.architecture.max_seq_length
        sources = [encode_input(self.tokenizer, prompt, (), limit) for prompt in model_input.iloc[:, 0]]
        return generate(self.model, self.tokenizer, sources, (params or {}).get("max_new_tokens", 64))


mlflow.models.set_model(OpenBA())
