"""Programs beside Python that tests run: what is missing is skipped by name, never an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

PACKAGES = "infra/debian-packages.txt"
POSTGRES_FOLDERS = "/usr/lib/postgresql"
"""Debian keeps the server's programs here and puts only clients on PATH."""


def find_program(name: str) -> Path | None:
    """Path of a program on PATH, or of a Postgres program in Debian's folder of the newest version."""
    if on_path := shutil.which(name):
        return Path(on_path)
    if shutil.which("psql") is None:  # installed, but hidden by the caller's PATH
        return None
    versions = sorted(Path(POSTGRES_FOLDERS).glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return versions[-1] if versions else None


def require_programs(*names: str) -> None:
    """Skip the running test, or all that use the running fixture, if one of the programs is missing."""
    if missing := [name for name in names if find_program(name) is None]:
        pytest.skip(f"not installed ({PACKAGES}): {', '.join(missing)}")
