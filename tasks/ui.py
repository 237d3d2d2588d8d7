"""`openba ui`: look at past runs. Prefect's and MLflow's own servers on the home's databases."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from openba.errors import UserError
from openba.graph import Pipeline
from openba.home import Home
from tasks.relocation import adopt_home
from tasks.services import LOOPBACK, PrefectServer, Service, answers, choose_port


def serve(pipeline: Pipeline, home: Home) -> None:
    """Start both servers and keep them until Ctrl-C."""
    adopt_home(home)
    prefect_server = PrefectServer(home, pipeline.config.runtime)
    services = [service for service in (prefect_server.service,) if service]
    addresses = [prefect_server.url.removesuffix("/api")]
    if home.tracking_uri.startswith("http"):
        addresses.append(home.tracking_uri)
    else:
        port = choose_port("MLflow port", None, 5000)
        addresses.append(f"http://{LOOPBACK}:{port}")
        services.append(mlflow_server(home.tracking_uri, port, home.root / "logs" / "mlflow-server.log"))
    try:
        for service in services:
            service.wait()
        print("\n".join([*addresses, "Ctrl-C ends them"]), flush=True)
        wait_for_end(services)
    except KeyboardInterrupt:
        pass
    finally:
        for service in services:
            service.stop()


def wait_for_end(services: Sequence[Service]) -> NoReturn:
    """Wait until one of the servers ends by itself.

    Raises:
        UserError: always; the message names the server and its log.
    """
    while all(service.process.poll() is None for service in services):
        time.sleep(1)
    ended = next(service for service in services if service.process.poll() is not None)
    raise UserError(f"{ended.name} ended (exit {ended.process.returncode}); see {ended.log}")


def mlflow_server(
    database_uri: str, port: int, log_file: Path, artifact_folder: Path | None = None
) -> Service:
    """MLflow's server on loopback.

    Args:
        database_uri: its database, such as sqlite:///mlflow.db.
        port: where it listens.
        log_file: what it prints.
        artifact_folder: its folder for files; None: the one that the experiments name.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
    # One person looks at the pages, and each further worker loads all of MLflow again.
    command += ["--workers", "1"]
    command += ["--artifacts-destination", str(artifact_folder)] if artifact_folder else []
    server_environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its executors outlive the server by seconds
        # Not an argument: every user of the machine can read those, and the address may hold a password.
        "MLFLOW_BACKEND_STORE_URI": database_uri,
    }
    return Service(
        "MLflow server",
        command,
        log_file,
        lambda: answers(f"http://{LOOPBACK}:{port}/health"),
        server_environment,
    )
