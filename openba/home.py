"""Folders of all state, below `OPENBA_HOME`; the default is `.openba/` in the working directory."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from openba.artifacts import Store
from openba.errors import UserError
from openba.redact import has_credentials

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
PROXY_VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_EXEMPTIONS = ("no_proxy", "NO_PROXY")
_FAMILIES = ("OPENBA_", "MLFLOW_", "PREFECT_", "RAY_")
_NOT_IN_ADDRESSES = frozenset("?#%")


@dataclass(frozen=True)
class Home:
    """The folders of one installation."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """`OPENBA_HOME`, made absolute. Unset and empty both mean `.openba` in the working directory.

        Raises:
            UserError: the path is a file, or has a character that addresses of databases cannot hold.
        """
        root = Path(os.environ.get("OPENBA_HOME") or ".openba").expanduser().resolve()
        if forbidden := sorted(set(str(root)) & _NOT_IN_ADDRESSES):
            raise UserError(
                f"OPENBA_HOME={root}: has {' '.join(map(repr, forbidden))}, which has a meaning of its own "
                "in the address of MLflow's database; choose another folder"
            )
        if root.exists() and not root.is_dir():
            raise UserError(f"OPENBA_HOME={root}: a file, not a folder; choose another path")
        return cls(root)

    def require_writable(self) -> None:
        """Make the folder if it is not there.

        Raises:
            UserError: the folder cannot be made or written to by this user.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            user = f"user {os.getuid()}"
            raise UserError(
                f"OPENBA_HOME={self.root}: {user} cannot write there ({error.strerror}); choose another "
                f"folder, or have its owner give it to {user}"
            ) from None

    @property
    def store(self) -> Store:
        """Artifacts: `OPENBA_STORE` (a folder or any fsspec URL), else `store/`; built in `work/`.

        A folder is made absolute, since addresses of outputs are read from other working directories.

        Raises:
            UserError: the URL holds credentials; addresses of outputs are written to MLflow and reports.
        """
        address = os.environ.get("OPENBA_STORE") or str(self.root / "store")
        if has_credentials(address):
            raise UserError(
                f"OPENBA_STORE={address}: holds a user or password, which everyone would read in MLflow and "
                "in reports; give them in variables of their own, such as AWS_ACCESS_KEY_ID"
            )
        return Store(address if _is_url(address) else Path(address).expanduser().resolve(), self.work)

    @property
    def work(self) -> Path:
        """Unfinished outputs. On a cluster all nodes must see it, as workers write checkpoints here."""
        return self.root / "work"

    @property
    def report(self) -> Path:
        """`report.html` and `report.json`."""
        return self.root / "report"

    @property
    def promotions(self) -> Path:
        """The promotion log: one JSON row a change of a champion, only ever appended to."""
        return self.root / "promotions.jsonl"

    @property
    def tracking_uri(self) -> str:
        """`MLFLOW_TRACKING_URI`, else a SQLite file. A relative path in it is made absolute."""
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"
        database_path = uri.removeprefix("sqlite:///")
        if database_path != uri:
            return uri if database_path == ":memory:" else f"sqlite:///{Path(database_path).resolve()}"
        return uri if _is_url(uri) else str(Path(uri).expanduser().resolve())


def prepare_environment() -> None:
    """Treat empty variables as unset and keep requests to this machine away from HTTP proxies.

    For the start of a process: Prefect, Ray and MLflow read their variables when they are first imported.
    """
    for variable_name, value in list(os.environ.items()):
        if not value and variable_name.startswith(_FAMILIES):
            del os.environ[variable_name]
    if not any(os.environ.get(variable_name) for variable_name in PROXY_VARIABLES):
        return
    # Libraries differ in which of the two spellings goes first, so both get all entries.
    listed_hosts = [
        entry.strip()
        for variable_name in _EXEMPTIONS
        for entry in os.environ.get(variable_name, "").split(",")
    ]
    # `*` exempts everything, and only if it stands alone.
    exempt_hosts = (
        ["*"]
        if "*" in listed_hosts
        else dict.fromkeys(entry for entry in (*listed_hosts, *LOOPBACK_NAMES) if entry)
    )
    exempt_list = ",".join(exempt_hosts)
    os.environ.update(dict.fromkeys(_EXEMPTIONS, exempt_list))


def _is_url(address: str) -> bool:
    return "://" in address or "::" in address
