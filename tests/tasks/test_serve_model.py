"""What MLflow passes to a registered model: the prompts are answered, never another column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import PyFuncModel

from openba.data.instruct import encode_input
from openba.durable import sha256
from openba.errors import UserError
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.tokenizer.tokenizer import Tokenizer
from tasks import serve_model
from tasks.registry import _SIGNATURE
from tests.serve.conftest import write_model

PROMPTS = ["房间很干净", "def"]


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("pyfunc") / "model", tokenizer, 3).parent


@pytest.fixture(scope="module")
def loaded(folder: Path) -> PyFuncModel:
    """The model as the registry writes it, loaded by MLflow."""
    files = {f"model/{path.name}": {"sha256": sha256(path)} for path in (folder / "model").iterdir()}
    pointer = folder / "pointer.json"
    pointer.write_text(json.dumps({"uri": str(folder), "files": files}))
    mlflow.pyfunc.save_model(
        str(folder / "pyfunc"), python_model=serve_model.__file__, artifacts={"pointer": str(pointer)},
        pip_requirements=["openba"], signature=_SIGNATURE,
    )  # fmt: skip
    return mlflow.pyfunc.load_model(str(folder / "pyfunc"))


@pytest.mark.parametrize(
    "given",
    [
        PROMPTS,
        np.array(PROMPTS),
        pd.DataFrame({"text": PROMPTS}),
        pd.DataFrame({"id": ["1", "2"], "prompt": PROMPTS}),
        pd.DataFrame({"prompt": PROMPTS, "id": [1, 2]}),
        {"prompt": PROMPTS, "id": [1, 2]},
        pd.Series(PROMPTS),
    ],
    ids=lambda given: type(given).__name__,
)
def test_the_prompts_are_answered(loaded: PyFuncModel, folder: Path, given: Any) -> None:
    model, tokenizer = load_model(folder / "model")
    sources = [encode_input(tokenizer, prompt, (), 128) for prompt in PROMPTS]
    expected = generate(model, tokenizer, sources, 5)
    assert loaded.predict(given, params={"max_new_tokens": 5}) == expected
    assert serve_model.prompts_of(given) == PROMPTS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (pd.DataFrame({"id": ["1"], "question": ["x"]}), "columns id, question: none is 'prompt'"),
        (pd.DataFrame({"prompt": [1]}), "row 0: the prompt is int"),
        (["x", None], "row 1: the prompt is"),
    ],
)
def test_what_holds_no_prompts_is_refused(loaded: PyFuncModel, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        loaded.predict(given)
