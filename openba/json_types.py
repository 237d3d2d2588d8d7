"""Names for values that come from JSON and YAML, which no type checker can know."""

from __future__ import annotations

from typing import Any

Json = Any
"""A JSON value. Not a recursive union, which every reader of a key would have to narrow."""
JsonObject = dict[str, Any]
"""A JSON object, such as a manifest, a row of a log or a section of a YAML file."""
