"""An empty home with an MLflow database; its tables take seconds to make and are made once."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from openba.home import Home


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_home(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path / "home")
    home.root.mkdir()
    shutil.copyfile(mlflow_database, home.root / "mlflow.db")
    return home
