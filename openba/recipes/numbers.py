"""Types of the numbers in recipes and runtimes: each has a meaning, a range and, where it counts, a unit.

Owns these types; every numeric field of `openba.recipes` is of one of them, which
`tests/recipes/test_numbers.py` checks. Bounds are what a meaning allows (a share is at most 1), or far beyond
any use and below what overflows (a batch of 16 million). NaN, infinities, booleans and numbers in quotes are
never allowed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from openba.units import Bytes, Steps, Tokens


def _plain_number(value: Any) -> Any:
    """Refuse what pydantic would turn into a number: `true` into 1, "12" into 12."""
    # `batch: yes` in YAML is true, and true is 1 in Python.
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r} is not a number; write it without quotes and without a unit")
    return value


_NUMBER = BeforeValidator(_plain_number)

Count = Annotated[int, _NUMBER, Field(ge=1, le=2**24)]
"""How many of something that must be there: samples of a batch, workers, threads, copies."""
Threads = Annotated[int, _NUMBER, Field(ge=1, le=1024)]
"""Threads of one process."""
Attempts = Annotated[int, _NUMBER, Field(ge=1, le=10_000)]
"""How often one question is asked."""
CountOrNone = Annotated[int, _NUMBER, Field(ge=0, le=2**24)]
"""How many of something that may be absent; zero is none."""
Size = Annotated[int, _NUMBER, Field(ge=1, le=2**20)]
"""A width, depth or length of a model or a sample, in channels, layers or tokens."""
Layers = Annotated[int, _NUMBER, Field(ge=1, le=256)]
"""Depth of a decoder whose width follows from it."""
SampleLength = Annotated[int, _NUMBER, Field(ge=2, le=2**20)]
"""Tokens of a sample that is divided in two."""
Records = Annotated[int, _NUMBER, Field(ge=1, le=10**12)]
"""How many records, documents or characters of a source."""
Seed = Annotated[int, _NUMBER, Field(ge=0, le=2**31 - 1)]
"""A random seed. Larger ones overflow what is derived: seed * 1,000,003 + step, times the workers."""
Version = Annotated[int, _NUMBER, Field(ge=1, le=2**31 - 1)]
"""A number that is raised when a meaning changes."""
Port = Annotated[int, _NUMBER, Field(ge=1, le=65_535)]
"""A TCP port."""

Finite = Annotated[float, _NUMBER, Field(allow_inf_nan=False)]
"""Any number."""
Positive = Annotated[float, _NUMBER, Field(gt=0, allow_inf_nan=False)]
"""A number above zero."""
NonNegative = Annotated[float, _NUMBER, Field(ge=0, allow_inf_nan=False)]
"""Zero or a number above it."""
Share = Annotated[float, _NUMBER, Field(ge=0, le=1, allow_inf_nan=False)]
"""A part of a whole, from 0 to 1; not in percent."""
PositiveShare = Annotated[float, _NUMBER, Field(gt=0, le=1, allow_inf_nan=False)]
"""A part of a whole that is not nothing."""
InnerShare = Annotated[float, _NUMBER, Field(gt=0, lt=1, allow_inf_nan=False)]
"""A part that leaves something: above 0 and below 1."""
Decay = Annotated[float, _NUMBER, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A decay rate of a running mean, or a dropout probability: from 0 to below 1."""
LearningRate = Annotated[float, _NUMBER, Field(ge=0, le=1, allow_inf_nan=False)]
"""A step of AdamW relative to the size of its update; above 1 nothing was ever trained."""
Repetitions = Annotated[float, _NUMBER, Field(ge=1, le=1e6, allow_inf_nan=False)]
"""How often something is used, at least once; need not be whole."""
Seconds = Annotated[float, _NUMBER, Field(gt=0, le=1e7, allow_inf_nan=False)]
"""A duration; at most four months."""
Watts = Annotated[float, _NUMBER, Field(gt=0, le=1e5, allow_inf_nan=False)]
"""Nominal power of one device."""
TeraFlops = Annotated[float, _NUMBER, Field(gt=0, le=1e6, allow_inf_nan=False)]
"""Peak of one device in 10^12 operations a second."""
PowerOverhead = Annotated[float, _NUMBER, Field(ge=1, le=10, allow_inf_nan=False)]
"""Power usage effectiveness: power of the building over that of its machines."""
CarbonIntensity = Annotated[float, _NUMBER, Field(ge=0, le=3, allow_inf_nan=False)]
"""kg CO2eq per kWh; the dirtiest grid has about 1.2, so a figure in grams is noticed."""

PositiveSteps = Annotated[Steps, Field(ge=1, le=10**12)]
"""Optimiser steps, one at least: `500 steps`."""
NonNegativeSteps = Annotated[Steps, Field(ge=0, le=10**12)]
"""Optimiser steps, possibly none: `0 steps`."""
PositiveTokens = Annotated[Tokens, Field(ge=1, le=10**18)]
"""Tokens, one at least: `40B tokens`."""
DeviceMemory = Annotated[Bytes, Field(ge=2**20, le=2**50)]
"""Memory of a device: `80GiB`."""
ObjectStoreMemory = Annotated[Bytes, Field(ge=75 * 2**20, le=2**50)]
"""Memory of Ray's object store, at least 75 MiB, as Ray requires."""
