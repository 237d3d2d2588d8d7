"""The services of infra/compose.yaml as processes of this machine, with that file's commands and settings.

Addresses and folders are replaced, nothing else: what runs here is what the file says.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg2
import yaml

from tasks.services import LOOPBACK, RAY_ON_LOOPBACK, Service, answers, free_port
from tests.harness.programs import find_program
from tests.infra.conftest import variables
from tests.infra.test_compose import NAMED

_PORTS = {"postgres": 5432, "redis": 6379, "store": 8333, "prefect-server": 4200, "mlflow": 5000,
          "ray-head": 8265, "prometheus": 9090}  # fmt: skip
_FOLDERS = ("/state", "/ray", "/boards")


PROGRAMS = ("redis-server", "prometheus", "postgres", "initdb", "pg_isready", "pg_dump")


class Stack:
    """All services, one after the other as they need each other, each in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = Path(tempfile.mkdtemp(prefix="oi-"))  # short: Ray makes sockets below it
        self.folder.chmod(0o755)
        infra = root / "infra"
        example = variables(infra / ".env.example")
        self.secrets = {n: value or secrets.token_hex(12) for n, value in example.items()}
        self.secrets["PREFECT_AUTH"] = f"openba:{self.secrets['PREFECT_AUTH']}"
        known = variables(infra / "versions.env") | self.secrets
        text = (infra / "compose.yaml").read_text()
        self.compose = yaml.safe_load(NAMED.sub(lambda found: known.get(found[1]) or found[3], text))[
            "services"
        ]
        self.ports = {name: free_port() for name in _PORTS}
        self.services: dict[str, Service] = {}
        for name in _FOLDERS:
            (self.folder / name[1:]).mkdir()

    def address(self, name: str) -> str:
        return f"{LOOPBACK}:{self.ports[name]}"

    def environment(self, name: str) -> dict[str, str]:
        """A service's, with this machine's addresses and folders."""
        return {
            key: self._here(str(value)) for key, value in self.compose[name].get("environment", {}).items()
        }

    def command(self, name: str) -> list[str]:
        return shlex.split(self.compose[name]["command"].replace("0.0.0.0", LOOPBACK))

    def start(self) -> None:
        """Databases and storage first, then the servers side by side."""
        self.redis()
        self.start_storage()
        self.services["redis"].wait()
        for begin in (self.ray, self.prefect_server, self.mlflow, self.prometheus):
            begin()
        self.services["prefect-server"].wait(150)
        self._start("prefect-services", self._python(self.command("prefect-services")), lambda: True)
        for service in self.services.values():
            service.wait(150)

    def start_storage(self) -> None:
        """Postgres with its databases and the object store with its buckets."""
        self.postgres()
        self.store()
        for name in ("postgres", "store"):
            self.services[name].wait()
        self._databases()
        self._buckets()

    def stop(self) -> None:
        for name in (
            "prefect-services",
            "prefect-server",
            "mlflow",
            "ray-head",
            "prometheus",
            "store",
            "redis",
            "postgres",
        ):
            if name in self.services:
                self.services[name].stop(timeout=2 if name == "ray-head" else 10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def postgres(self) -> None:
        """Made the first time; after that what is there is started again."""
        data = self.folder / "postgres"
        # As root the server refuses to run; its kernel signal on our death is set after the change of user.
        as_user = [
            "setpriv",
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "--pdeathsig=TERM",
            "--",
        ]
        become = as_user if os.getuid() == 0 else []
        if not data.exists():
            data.mkdir()
            password = data.with_suffix(".password")
            password.write_text(self.secrets["POSTGRES_PASSWORD"])
            if become:
                shutil.chown(data, "postgres")
                shutil.chown(password, "postgres")
            made = [
                *become,
                program("initdb"),
                "--pgdata",
                data,
                "--username=openba",
                "--auth=scram-sha-256",
                "--pwfile",
                password,
            ]
            subprocess.run([*made, "--no-sync"], check=True, capture_output=True)
        options = [f"--listen_addresses={LOOPBACK}", f"--port={self.ports['postgres']}", "--fsync=off"]
        options += ["--unix_socket_directories=", "--max_connections=200"]
        # It listens before it has recovered what was not yet in its tables.
        asks = [program("pg_isready"), f"--host={LOOPBACK}", f"--port={self.ports['postgres']}"]
        self._start(
            "postgres",
            [*become, program("postgres"), "-D", str(data), *options],
            lambda: subprocess.run(asks, capture_output=True).returncode == 0,
        )

    def redis(self) -> None:
        # The password as in compose: not on the command line.
        file = self.folder / "redis.conf"
        file.write_text(f"requirepass {self.secrets['REDIS_PASSWORD']}\n")
        file.chmod(0o600)
        options = [
            "--bind",
            LOOPBACK,
            "--port",
            str(self.ports["redis"]),
            "--dir",
            str(self.folder),
            "--save",
            "",
        ]
        self._start("redis", ["redis-server", str(file), *options], self._listens("redis"))

    def store(self) -> None:
        # moto's server in place of SeaweedFS: no real S3 server is to be had as a package.
        command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(self.ports["store"])]
        self._start("store", command, self._listens("store"))

    def ray(self) -> None:
        own = ("port", "metrics-export-port", "ray-client-server-port", "dashboard-agent-listen-port")
        ports = {name: free_port() for name in own} | {"dashboard-port": self.ports["ray-head"]}
        replaced = [f"--{name}={port}" for name, port in ports.items()]
        replaced += ["--node-ip-address=127.0.0.1", "--object-store-memory=104857600"]
        names = {option.split("=")[0] for option in replaced}
        given = [self._here(word) for word in self.command("ray-head") if word.split("=")[0] not in names]
        ready = self._answers("ray-head", "/api/version")
        quick = {"RAY_metrics_report_interval_ms": "1000", "RAY_DISABLE_MEMORY_MONITOR": "1"}
        self._start("ray-head", self._python([*given, *replaced]), ready, RAY_ON_LOOPBACK | quick)

    def prefect_server(self) -> None:
        command = [*self.command("prefect-server"), "--port", str(self.ports["prefect-server"])]
        ready = self._answers("prefect-server", "/api/health")
        self._start("prefect-server", self._python(command), ready)

    def mlflow(self) -> None:
        command = [
            word.replace(f"{LOOPBACK}:5000", self.address("mlflow")) for word in self.command("mlflow")
        ]
        command[command.index("--workers") + 1] = "1"
        command += ["--port", str(self.ports["mlflow"])]
        ready = self._answers("mlflow", "/health")
        self._start("mlflow", self._python(command), ready)

    def prometheus(self) -> None:
        file = self.folder / "prometheus.yaml"
        config = (self.root / "infra" / "prometheus" / "prometheus.yaml").read_text()
        file.write_text(self._here(config).replace(" 10s", " 1s"))
        shutil.copyfile(self.root / "infra" / "prometheus" / "alerts.yaml", file.with_name("alerts.yaml"))
        command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={self.folder / 'prometheus'}",
                   f"--web.listen-address={self.address('prometheus')}"]  # fmt: skip
        self._start("prometheus", command, self._answers("prometheus", "/-/ready"))

    def _start(
        self, name: str, command: list[str], ready: Callable[[], bool], more: dict[str, str] | None = None
    ) -> None:
        settings = {"DO_NOT_TRACK": "1", "PREFECT_HOME": str(self.folder / "prefect")}
        # The programs of this Python, as in the image.
        settings["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings |= self.environment(name) | (more or {})
        self.services[name] = Service(name, command, self.folder / f"{name}.log", ready, settings)

    def _databases(self) -> None:
        with_password = f"postgresql://openba:{self.secrets['POSTGRES_PASSWORD']}@{self.address('postgres')}"
        connection = psycopg2.connect(f"{with_password}/postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {self.compose['postgres']['environment']['POSTGRES_DB']}")
            cursor.execute((self.root / "infra" / "compose" / "databases.sql").read_text())
        connection.close()

    def _buckets(self) -> None:
        _, _, *buckets = self.command("buckets")
        script = self.root / "infra" / "compose" / "buckets.py"
        for _ in range(2):  # the second time they are there
            made = [sys.executable, script, *buckets]
            subprocess.run(made, check=True, env=os.environ | self.environment("buckets"))

    def _here(self, text: str) -> str:
        for name, port in _PORTS.items():
            text = text.replace(f"{name}:{port}", self.address(name))
        for name in _FOLDERS:
            text = text.replace(f"={name}", f"={self.folder}{name}").replace(
                f"[{name}/", f"[{self.folder}{name}/"
            )
            text = f"{self.folder}{text}" if text == name else text
        return text

    def _answers(self, name: str, path: str) -> Callable[[], bool]:
        return lambda: answers(f"http://{self.address(name)}{path}")

    def _listens(self, name: str) -> Callable[[], bool]:
        def ready() -> bool:
            with suppress(OSError), socket.create_connection((LOOPBACK, self.ports[name]), 1):
                return True
            return False

        return ready

    @staticmethod
    def _python(command: list[str]) -> list[str]:
        """A program of this Python's environment."""
        return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def program(name: str) -> str:
    """Path of a program that `require_programs` has checked."""
    path = find_program(name)
    assert path is not None, name
    return str(path)
