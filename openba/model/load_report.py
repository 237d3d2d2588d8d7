"""The report of transformers about loading weights, raised as one error instead of logged.

Travels with exported models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HEAD = "lm_head.weight"
_LOG = logging.getLogger("transformers.modeling_utils")


@contextmanager
def without_report() -> Iterator[None]:
    """Suppress transformers' table of tensors: its content is an error of one line here."""
    _LOG.addFilter(_is_no_report)
    try:
        yield
    finally:
        _LOG.removeFilter(_is_no_report)


def problem_of(loading_info: dict[str, Any]) -> str | None:
    """Describe the first tensor that is missing, unexpected or misshapen; None if all are there."""
    # A tied head is missing where the embedding is; the embedding is what the files lack.
    for name in sorted(loading_info["missing_keys"], key=lambda name: (name == HEAD, name)):
        return f"tensor {name} is missing"
    for name in sorted(loading_info["unexpected_keys"]):
        return f"tensor {name} is unexpected"
    for name, file_shape, model_shape in sorted(loading_info["mismatched_keys"]):
        return f"tensor {name} has shape {list(file_shape)}, not {list(model_shape)}"
    return None


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
