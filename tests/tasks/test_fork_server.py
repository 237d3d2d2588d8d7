"""Processes forked from the fork server behave as if `python` had been started."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.fork_server import ForkServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("fork") / "server.log", {})
    server.wait()
    yield server
    server.stop()
    assert not server.folder.exists()


def command(server: ForkServer, *arguments: str) -> list[str]:
    return [*shlex.split(server.command), *arguments]


def sleeping(server: ForkServer, program: Path) -> "subprocess.Popen[str]":
    """A client whose forked process prints its id and sleeps."""
    return subprocess.Popen(command(server, str(program), "sleep"), stdout=subprocess.PIPE, text=True)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(
        "import os, sys, time\n"
        "if __name__ == '__main__':\n"
        "    if sys.argv[1] == 'show':\n"
        "        colour, text = os.environ['COLOUR'], sys.stdin.read()\n"
        "        print(sys.argv[2:], os.getcwd(), colour, text, 'torch' in sys.modules)\n"
        "        print('to stderr', file=sys.stderr)\n"
        "        sys.exit(int(sys.argv[2]))\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    return path


def test_arguments_folder_environment_streams_and_exit_code_are_passed(
    server: ForkServer, program: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        command(server, str(program), "show", "7", "two words"),
        input="from stdin",
        cwd=tmp_path,
        env=os.environ | {"COLOUR": "青"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7
    assert done.stdout == f"['7', 'two words'] {tmp_path} 青 from stdin True\n"
    assert done.stderr == "to stderr\n"


def test_a_module_is_run_as_python_runs_it(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "colours.py").write_text("import sys\nprint(__name__, sys.argv[1:], sys.path[0])\n")
    arguments = ["-m", "colours", "green"]
    outputs = [
        subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
        for start in ([sys.executable, *arguments], command(server, *arguments))
    ]
    assert outputs[0] == outputs[1] == f"__main__ ['green'] {tmp_path}\n"


def test_an_uncaught_exception_prints_its_traceback_and_exits_with_1(
    server: ForkServer, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('no colour')\n")
    done = subprocess.run(
        command(server, str(tmp_path / "broken.py")), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: no colour\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_client_ends_the_forked_process(
    server: ForkServer, program: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        command(server, str(program), "sleep"), stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        forked = psutil.Process(int(client.stdout.readline()))
        client.send_signal(number)
        expected = {signal.SIGINT: 1}.get(number, -number)  # Python turns SIGINT into KeyboardInterrupt
        assert client.wait(timeout=30) in (expected, -number)
    assert _has_ended(forked)


def test_a_killed_forked_process_ends_its_client_in_the_same_way(server: ForkServer, program: Path) -> None:
    with subprocess.Popen(
        command(server, str(program), "sleep"), stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        os.kill(int(client.stdout.readline()), signal.SIGKILL)
        assert client.wait(timeout=30) == -signal.SIGKILL


def test_without_a_server_the_command_runs_in_a_new_interpreter(
    server: ForkServer, program: Path, tmp_path: Path
) -> None:
    start = [part.replace(str(server.socket), str(tmp_path / "nothing")) for part in command(server)]
    done = subprocess.run(
        [*start, str(program), "show", "3"],
        input="",
        env=os.environ | {"COLOUR": "red"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert done.stdout.endswith("False\n")  # torch was not there


def test_many_processes_that_end_at_once_are_all_reported(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "brief.py").write_text("import sys\nsys.exit(int(sys.argv[1]))\n")
    codes = list(range(40))
    clients = [subprocess.Popen(command(server, str(tmp_path / "brief.py"), str(code))) for code in codes]
    assert [client.wait(timeout=60) for client in clients] == codes
    for client in clients[::2]:
        client.kill()  # harmless: it has ended
    assert subprocess.run(command(server, str(tmp_path / "brief.py"), "5"), timeout=60).returncode == 5


def test_forked_processes_end_with_their_server(tmp_path: Path, program: Path) -> None:
    server = ForkServer(tmp_path / "server.log", {})
    server.wait()
    with subprocess.Popen(
        command(server, str(program), "sleep"), stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        forked = psutil.Process(int(client.stdout.readline()))
        server.stop()
        client.wait(timeout=30)
    assert _has_ended(forked)


def _has_ended(process: psutil.Process, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False
