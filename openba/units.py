"""Quantities with units, parsed once: `40B tokens`, `2000 steps`, `4MiB`, `25 %`.

Owns the spelling of quantities in YAML and on the command line. It does not depend on
what the quantities are for.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from openba.json_types import Json

_MOST = 10**18
_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
WRITTEN = "written by a person"
"""Validation context of values from YAML and the command line: a quantity without its unit is refused."""
_EXAMPLES = {"tokens": "40B tokens", "steps": "2000 steps"}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*([a-z]*)\s*$")


def parse_count(value: Json, unit: str) -> int:
    """`"40B tokens"` -> 40_000_000_000. The unit word is required, so tokens are never read as steps."""
    if isinstance(value, bool) or not isinstance(value, str):
        raise ValueError(f"write the unit: '{value} {unit}'")
    match = _NUMBER.match(value)
    if match is None:
        raise ValueError(f"cannot read {value!r}; write a number and a unit, such as {_EXAMPLES[unit]!r}")
    number, scale, word = match.groups()
    # `500 steps` is matched as number and scale, as the unit stands where a scale could.
    if not word and scale in (unit, unit.rstrip("s")):
        scale = ""
        word = unit
    if scale not in _SCALE or word not in (unit, unit.rstrip("s")):
        raise ValueError(f"cannot read {value!r}; the unit here is {unit!r}, as in {_EXAMPLES[unit]!r}")
    amount = Decimal(number.replace("_", "")) * _SCALE[scale]  # exact: 2.01k is 2,010
    if amount > _MOST:
        raise ValueError(f"{value!r} is more than any training needs; the most is {_MOST:.0e} {unit}")
    if amount != int(amount):
        raise ValueError(f"{value!r} is not a whole number of {unit}")
    return int(amount)


def parse_bytes(value: Json) -> int:
    """`"4MiB"` -> 4194304. The unit is required."""
    match = _NUMBER.match(value) if isinstance(value, str) else None
    if match is None or match.group(2) not in _BYTES or match.group(3):
        raise ValueError(f"cannot read {value!r}; write bytes such as '4MiB' or '2GiB'")
    amount = Decimal(match.group(1).replace("_", "")) * _BYTES[match.group(2)]
    return int(amount) if amount < _MOST else _MOST


def _count(unit: str) -> Json:
    def read(value: Json, info: ValidationInfo) -> int:
        return value if _is_stored(value, info) else parse_count(value, unit)

    return BeforeValidator(read, json_schema_input_type=str | int)


def _is_stored(value: Json, info: ValidationInfo) -> bool:
    """Accept a plain int outside of YAML: a recipe from a manifest, whose field says the unit."""
    return type(value) is int and info.context != WRITTEN


def _read_bytes(value: Json, info: ValidationInfo) -> int:
    return int(value) if _is_stored(value, info) else parse_bytes(value)


Tokens = Annotated[int, _count("tokens")]
Steps = Annotated[int, _count("steps")]
Bytes = Annotated[int, BeforeValidator(_read_bytes, json_schema_input_type=str | int)]


class Budget(BaseModel):
    """Length of a training: a number of tokens or of optimiser steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    amount: int = Field(strict=True, ge=1, le=10**18)
    unit: Literal["tokens", "steps"]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Json) -> Json:
        if not isinstance(value, str):
            if not isinstance(value, dict | cls):
                raise ValueError(f"write the unit: '{value} steps' or '{value} tokens'")
            return value
        if not value.rstrip().endswith(("steps", "step", "tokens", "token")):
            raise ValueError(f"cannot read {value!r}; write its unit, as in '2000 steps' or '40B tokens'")
        unit = "steps" if value.rstrip().endswith(("steps", "step")) else "tokens"
        return {"amount": parse_count(value, unit), "unit": unit}

    def __str__(self) -> str:
        return f"{human(self.amount)} {self.unit}"


def human(number: float) -> str:
    """`12_300_000` -> `12.3M`: three significant digits, for tables and progress lines."""
    for suffix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}"


def human_time(seconds: float) -> str:
    """`3725` -> `1:02:05`; under an hour `62:05`'s form `m:ss`."""
    whole_seconds = max(0, round(seconds))
    hours, rest_seconds = divmod(whole_seconds, 3600)
    minutes, rest_seconds = divmod(rest_seconds, 60)
    return f"{hours}:{minutes:02d}:{rest_seconds:02d}" if hours else f"{minutes}:{rest_seconds:02d}"
