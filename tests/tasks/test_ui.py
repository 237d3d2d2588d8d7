"""`openba ui` ends with its servers, and shows no database's password among a process's arguments."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from openba.errors import UserError
from tasks.services import Service, free_port
from tasks.ui import mlflow_server, wait_for_end


def test_the_command_ends_when_a_server_does(tmp_path: Path) -> None:
    programs = {"lasting": "import time; time.sleep(60)", "ending": "raise SystemExit(3)"}
    services = [
        Service(name, [sys.executable, "-c", program], tmp_path / name, lambda: True, {})
        for name, program in programs.items()
    ]
    with pytest.raises(UserError, match=r"ending ended \(exit 3\); see .*ending"):
        wait_for_end(services)
    for service in services:
        service.stop(0)


def test_the_databases_address_is_no_argument(tmp_path: Path) -> None:
    port = free_port()
    service = mlflow_server(f"sqlite:///{tmp_path / 'hunter2-Geheim.db'}", port, tmp_path / "log")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "hunter2-Geheim.db").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (tmp_path / "hunter2-Geheim.db").exists()  # the address is used all the same
        process = psutil.Process(service.process.pid)
        arguments = [each.cmdline() for each in (process, *process.children(recursive=True))]
        assert "mlflow" in str(arguments)
        assert "Geheim" not in str(arguments)
    finally:
        service.stop(0)
