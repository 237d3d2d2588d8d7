"""The base of an adapter: where its frozen weights are and by what they are recognised. Imports no peft."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from openba import durable
from openba.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
BASE_FILE = "base.json"
_WEIGHTS = ("*.safetensors", "*.bin")


def holds_model(folder: Path) -> bool:
    """Whether a folder looks like a model's: a whole one's or an adapter's."""
    return (folder / "config.json").is_file() or is_adapter(folder)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).exists()


def base_of(folder: Path) -> Path:
    """Return the folder of the weights that an adapter stands on.

    Raises:
        UserError: it is not there, or holds other weights than those that the adapter was trained on.
    """
    try:
        record = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
        base = Path(record["folder"])
        digest = record["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / BASE_FILE}: not readable ({error}); train the adapter again") from None
    if not base.is_dir():
        raise UserError(
            f"{folder}: its base {base} is not there; build it again, or export the adapter first"
        )
    if digest_of_weights(base) != digest:
        raise UserError(
            f"{folder}: the weights at {base} are not those that the adapter was trained on; give it its own "
            "base"
        )
    return base


def whole_base_of(folder: Path) -> Path:
    """Return the folder of the whole model that an adapter stands on, directly or upon others.

    Of a whole model it is the folder itself. Raises as `base_of`.
    """
    return whole_base_of(base_of(folder)) if is_adapter(folder) else folder


def digest_of_weights(folder: Path) -> str:
    """Return a quick fingerprint of a folder's weights, from parts of each file.

    Names are no part of it: a copy under another path is the same base.
    """
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    base_file = folder / BASE_FILE
    parts = [durable.sampled_digest(path) for path in files]
    # An adapter upon an adapter: other weights below are another base.
    below = json.loads(base_file.read_text(encoding="utf-8"))["digest"] if base_file.exists() else ""
    return hashlib.sha256("".join([*parts, below]).encode()).hexdigest()
