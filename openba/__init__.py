"""The library: data, models, training, evaluation, accounting. Imports no prefect, mlflow or ray.

`from openba import OpenBAForConditionalGeneration` (or `OpenBAConfig`, `OpenBATokenizer`) loads transformers
and registers them with its Auto classes; nothing else here imports transformers.
"""

from typing import Any

AT_HOME_IN_TRANSFORMERS = (
    "OpenBAConfig",
    "OpenBAEncoderDecoder",
    "OpenBAForConditionalGeneration",
    "OpenBATokenizer",
)


def __getattr__(name: str) -> Any:
    if name in AT_HOME_IN_TRANSFORMERS:
        from openba.model import auto

        return getattr(auto, name)
    raise AttributeError(f"module 'openba' has no attribute {name!r}")
