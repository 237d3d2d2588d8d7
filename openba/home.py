"""Where state lives: everything under `OPENBA_HOME`, default `.openba/` in the working directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from openba.artifacts import Store
from openba.errors import UserError
from openba.redact import has_credentials


@dataclass(frozen=True)
class Home:
    """The folders of one installation."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """`OPENBA_HOME`, made absolute."""
        return cls(Path(os.environ.get("OPENBA_HOME", ".openba")).resolve())

    @property
    def store(self) -> Store:
        """Artifacts: `OPENBA_STORE` (any fsspec URL), else `store/`; built in `work/`.

        Raises:
            UserError: the URL holds credentials; addresses of outputs are written to MLflow and reports.
        """
        place = os.environ.get("OPENBA_STORE", str(self.root / "store"))
        if has_credentials(place):
            raise UserError(
                f"OPENBA_STORE={place}: holds a user or password, which everyone would read in MLflow and in "
                "reports; give them in variables of their own, such as AWS_ACCESS_KEY_ID"
            )
        return Store(place, self.work)

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
        """`MLFLOW_TRACKING_URI`, else a SQLite file."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"
