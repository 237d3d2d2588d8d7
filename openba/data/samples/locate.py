"""Find the files of an installed package without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pydantic import JsonValue

from openba.errors import UserError

INSTALL = "pip install 'openba[sample]'"
Record = tuple[str, str, dict[str, JsonValue]]
"""Id, text and other fields of a record."""


def package_folder(module: str, below: str) -> Path:
    """Return the folder `below` in a top-level package.

    Raises:
        UserError: the package is not installed, or this version of it has no such folder.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {module} is not installed; {INSTALL}")
    folder = Path(next(iter(spec.submodule_search_locations))) / below
    if not folder.is_dir():
        raise UserError(f"package {module} has no folder {below} (another version?); {INSTALL}")
    return folder
