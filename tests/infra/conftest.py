"""What infra/ pins, read once."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.utils import canonicalize_name


def variables(path: Path) -> dict[str, str]:
    """The assignments of an `.env` file."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="session")
def versions(root: Path) -> dict[str, str]:
    return variables(root / "infra" / "versions.env")


@pytest.fixture(scope="session")
def locked(root: Path) -> dict[str, str]:
    """Every Python package's version, by its canonical name."""
    lines = (root / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
