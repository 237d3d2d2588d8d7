"""Every command with services whose addresses hold a password and that fail: it stands in no output."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import click
import pytest
import typer.main

from flows.cli import app
from tests.harness.failing_service import failing_service

PASSWORD = "hunter2/Geheim"
FORMS = [PASSWORD, quote(PASSWORD, safe=""), base64.b64encode(f"me:{PASSWORD}".encode()).decode()]
"""As it is, as it stands in an address, and as a client sends it."""
COMMANDS = {
    "run": ["tiny"],
    "plan": ["tiny"],
    "show": ["stage1"],
    "explain": ["stage1"],
    "doctor": [],
    "rollback": ["openba-chat", "--reason", "a test"],
    "promote": ["openba-chat", "1", "--reason", "a test"],
    "report": [],
    "ui": [],
    "eval": ["nowhere", "nothing"],
    "compare": ["nowhere", "elsewhere"],
    "judge": ["nowhere"],
    "sweep": ["tiny", "--set", "stages.stage3.optim.lr=1e-3,2e-3"],
    "leaderboard": ["nowhere"],
    "export": ["models:/openba-chat@champion", "nowhere", "--format", "released"],
    "serve": ["models:/openba-chat@champion", "--port", "0"],
    "serve --cluster": ["models:/openba-chat@champion"],
    "data preview": ["stage1"],
    "data why": ["reviews", "0"],
    "data report": ["tiny"],
}
"""With the arguments that bring each to its services."""
ASKING = ["run", "doctor", "rollback", "ui", "serve", "serve --cluster"]
"""Those that ask a service at once."""
SECONDS = {"ui": 30}
"""Of commands that go on for ever; others get 90."""


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of all commands below one."""
    for name, each in getattr(command, "commands", {}).items():
        if hasattr(each, "commands"):
            yield from commands(each, (*path, name))
        else:
            yield " ".join((*path, name))


def test_every_command_is_tried() -> None:
    present = set(commands(typer.main.get_command(app)))
    assert present <= set(COMMANDS), "add the new command with arguments that make it ask its services"


def environment(home: Path, port: int, **more: str) -> dict[str, str]:
    address = f"http://me:{quote(PASSWORD, safe='')}@127.0.0.1:{port}"
    services = {
        "MLFLOW_TRACKING_URI": address,
        "PREFECT_API_URL": f"{address}/api",
        "RAY_ADDRESS": address,
        "OPENBA_HOME": str(home),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "MLFLOW"))}
    return inherited | services | more


def outputs(command: list[str], environment: dict[str, str], seconds: int) -> str:
    """All that a command prints until it ends or, after some seconds, gets Ctrl-C."""
    started = subprocess.run(
        ["timeout", "--signal", "INT", "--kill-after", "20", str(seconds), sys.executable, *command],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    return started.stdout + started.stderr


def leaks(home: Path) -> list[str]:
    """Files below a folder that hold the password in any form: databases, logs, reports."""
    return [
        str(path)
        for path in home.rglob("*")
        if path.is_file() and any(form.encode() in path.read_bytes() for form in FORMS)
    ]


@pytest.mark.parametrize(("status", "names"), [(403, list(COMMANDS)), (500, ASKING)])
def test_no_command_shows_a_password(status: int, names: list[str], tmp_path: Path) -> None:
    def run(name: str) -> tuple[str, str]:
        home = tmp_path / name.replace(" ", "-")
        command = ["-m", "flows.cli", *name.split(), *COMMANDS[name]]
        return name, outputs(command, environment(home, services.port), SECONDS.get(name, 90))

    with failing_service(status) as services, ThreadPoolExecutor(2) as pool:
        printed = dict(pool.map(run, names))
    for name, text in printed.items():
        assert not any(form in text for form in FORMS), f"{name}: {text}"
        assert "Traceback" not in text, f"{name}: {text}"
    for path in ("/api/2.0/mlflow/", "/api/ray/version"):  # MLflow and Ray were asked
        assert any(asked.startswith(path) for asked in services.paths), path
    assert "PREFECT_API_URL=http://127.0.0.1" in printed["run"], printed["run"]
    assert leaks(tmp_path) == []


def test_a_run_whose_tracking_fails_leaves_no_password_in_prefect(tmp_path: Path) -> None:
    """Prefect keeps states, logs and parameters of the flow in its database, MLflow's error among them."""
    with failing_service(403) as tracking:
        own = environment(tmp_path, tracking.port)
        del own["PREFECT_API_URL"], own["RAY_ADDRESS"]
        text = outputs(["-m", "flows.cli", "run", "tiny", "--until", "source-reviews"], own, seconds=400)
    assert not any(form in text for form in FORMS), text
    assert tracking.paths
    assert (tmp_path / "prefect").exists()
    assert leaks(tmp_path) == []


@pytest.mark.parametrize("variable", ["OPENBA_STORE"])
def test_a_store_whose_address_holds_a_password_is_refused(variable: str, tmp_path: Path) -> None:
    own = os.environ | {
        variable: f"s3://me:{quote(PASSWORD, safe='')}@bucket/x",
        "OPENBA_HOME": str(tmp_path),
    }
    text = outputs(["-m", "flows.cli", "plan", "tiny"], own, seconds=90)
    assert "AWS_ACCESS_KEY_ID" in text
    assert not any(form in text for form in FORMS)
