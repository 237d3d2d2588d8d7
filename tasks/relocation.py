"""A home that was moved or copied: correct the addresses in MLflow's database file and in pointers.

MLflow stores absolute paths of artifacts and has no command to change them. The rest of a home holds
relative paths.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from openba import durable
from openba.errors import UserError
from openba.home import Home

ARTIFACTS = "mlartifacts"
"""Folder of a home in which the experiments of its database file keep their artifacts."""
_DATABASE = "mlflow.db"
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("tags", "value"),
    ("model_version_tags", "value"),
)
"""Tables and columns of MLflow's database that hold paths below a home."""


def adopt_home(home: Home) -> Path | None:
    """Correct the addresses if the home is not where its last run was; return the old folder, else None.

    Raises:
        UserError: the database is locked or damaged.
    """
    database_file = home.root / _DATABASE
    if home.tracking_uri != f"sqlite:///{database_file}" or not database_file.exists():
        return None
    try:
        with closing(sqlite3.connect(database_file, timeout=10)) as connection, connection:
            old_root = _old_root(connection, home.root)
            if old_root is None:
                return None
            for old_prefix, new_prefix in _spellings(old_root, home.root):
                # By prefix: SQL's REPLACE would also change the old path in the middle of a value.
                for table, column in _ADDRESSES:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names of ours
                        f"WHERE substr({column}, 1, ?) = ?",
                        (f"{new_prefix}/", len(old_prefix) + 2, len(old_prefix) + 1, f"{old_prefix}/"),
                    )
            for pointer_file in (home.root / ARTIFACTS).rglob("pointer.json"):
                _correct_pointer(pointer_file, old_root, home.root)
    except sqlite3.Error as error:
        raise UserError(f"{database_file}: {error}; end the process that uses it, then run again") from None
    return old_root


def _old_root(connection: sqlite3.Connection, root: Path) -> Path | None:
    """Return the home that the experiments' artifact folders name, if it is another than this one."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return None
    for (location,) in connection.execute("SELECT artifact_location FROM experiments"):
        folder, _, folder_name = str(location).removeprefix("file://").rpartition("/")
        if folder_name == ARTIFACTS and Path(folder) != root and quote(str(root)) != folder:
            return Path(folder)
    return None


def _spellings(old_root: Path, new_root: Path) -> Iterator[tuple[str, str]]:
    """Prefixes to replace: plain paths, and `file://` addresses, in which MLflow quotes some characters."""
    yield str(old_root), str(new_root)
    yield f"file://{old_root}", f"file://{new_root}"
    if quote(str(old_root)) != str(old_root):
        yield f"file://{quote(str(old_root))}", f"file://{quote(str(new_root))}"


def _correct_pointer(pointer_file: Path, old_root: Path, new_root: Path) -> None:
    pointer = json.loads(pointer_file.read_text(encoding="utf-8"))
    store_uri = str(pointer["uri"])
    if not store_uri.startswith(f"{old_root}/"):
        return
    pointer["uri"] = f"{new_root}{store_uri.removeprefix(str(old_root))}"
    durable.write_text(pointer_file, json.dumps(pointer, indent=2))
