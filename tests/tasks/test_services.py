"""Embedded servers: started, found ready, and gone with everything they started."""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from openba.errors import UserError
from openba.home import PROXY_VARIABLES
from tasks.doctor import _proxies
from tasks.services import Service, _can_hold_sockets, _short_folder, choose_port, free_port


@pytest.mark.parametrize("timeout", [10.0, 0.0])
def test_a_service_ends_with_its_children(tmp_path: Path, timeout: float) -> None:
    stubborn = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    child = f"subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)"
    parent = f"import subprocess, sys, time; {child}; time.sleep(300)"
    service = Service("parent", [sys.executable, "-c", parent], tmp_path / "log", lambda: True, {})
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(service.process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    service.stop(timeout)
    assert children
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_service_that_died_leaves_nothing_behind(tmp_path: Path) -> None:
    """As a Ray head whose raylet was killed: its workers are orphans then."""
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)"
    parent = f"import subprocess, sys; print({child}.pid, flush=True)"
    service = Service("parent", [sys.executable, "-c", parent], tmp_path / "log", lambda: True, {})
    service.process.wait(20)
    orphan = psutil.Process(int((tmp_path / "log").read_text()))
    assert orphan.is_running()
    service.stop()
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_a_service_that_ends_at_once_names_its_log(tmp_path: Path) -> None:
    service = Service(
        "broken", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log", lambda: False, {}
    )
    with pytest.raises(UserError, match=r"broken ended while starting \(exit 3\); see .*log"):
        service.wait()


def test_a_service_that_never_answers_is_ended(tmp_path: Path) -> None:
    service = Service(
        "deaf", [sys.executable, "-c", "import time; time.sleep(99)"], tmp_path / "log", lambda: False, {}
    )
    with pytest.raises(UserError, match="did not answer"):
        service.wait(timeout=0.5)
    assert service.process.poll() is not None


def test_a_taken_usual_port_is_passed_over() -> None:
    usual = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", usual))
        taken.listen()
        assert choose_port("setting", None, usual) != usual
        with pytest.raises(UserError, match=f"setting: port {usual} is in use"):
            choose_port("setting", usual, usual)


def test_two_runs_that_start_at_once_choose_two_ports() -> None:
    usual = free_port()
    program = (
        f"from tasks.services import choose_port; print(choose_port('s', None, {usual}), flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == usual  # chosen, and not bound yet
        assert choose_port("s", None, usual) != usual
        other.communicate("\n")
    assert choose_port("s", None, usual) == usual
    assert choose_port("s", None, usual) == usual  # its own again, as after a stop


@pytest.mark.parametrize("home", ["/tmp/a b", "/tmp/家", f"/tmp/{'deep/' * 20}home"])
def test_rays_sockets_get_a_folder_that_can_hold_them(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _can_hold_sockets(Path(home) / "ray")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "with space"))
    (tmp_path / "with space").mkdir()
    folder = _short_folder()
    try:
        assert _can_hold_sockets(folder)
        assert folder.stat().st_mode & 0o077 == 0
    finally:
        folder.rmdir()
    assert not list((tmp_path / "with space").iterdir())


def test_doctor_names_what_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert list(_proxies()) == []
    monkeypatch.setenv("http_proxy", "http://me:hidden@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "mlflow.example")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    proxy, prefect = _proxies()
    assert "proxy.example:3128" in proxy.observed
    assert "hidden" not in proxy.observed
    assert (prefect.what, prefect.ok) == ("PREFECT_API_URL", None)
    assert prefect.remedy == "add prefect.example to no_proxy"
