"""Checks of this machine before a run: versions, memory, disk, ports, folders; a remedy for each."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import httpx
import psutil
from packaging.requirements import Requirement
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL, temporary_settings

from openba.home import PROXY_VARIABLES, Home
from openba.redact import redact
from tasks.services import choose_port

LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem"
AUTOMATIONS = ("openba-crash-zombies", "openba-crash-pending")
"""Of `infra/prefect/automations.yaml`: they free the place of a run whose process or worker has died."""


@dataclass(frozen=True)
class Check:
    """One finding: `ok` None is a warning."""

    what: str
    observed: str
    ok: bool | None
    remedy: str = ""


def examine(home: Home) -> list[Check]:
    """All checks, in the order in which a run would meet them."""
    return [*_python(), *_packages(), *_machine(home), *_ports(), *_proxies(), *prefect_server()]


def _python() -> Iterator[Check]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Check("Python", version, sys.version_info >= (3, 11), "install Python 3.11 and make a new .venv")


def _packages() -> Iterator[Check]:
    """Compare every requirement with the installed version; FastAPI's pin is the fragile one."""
    for text in importlib.metadata.requires("openba") or []:
        requirement = Requirement(text)
        extra = requirement.marker is not None
        if extra and not requirement.marker.evaluate({"extra": "sample"}):  # type: ignore[union-attr]
            continue
        try:
            installed_version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                requirement.name, "missing", None if extra else False, f"pip install '{requirement.name}'"
            )
            continue
        ok = requirement.specifier.contains(installed_version.partition("+")[0], prereleases=True)
        yield Check(
            requirement.name,
            installed_version,
            ok,
            f"pip install '{requirement.name}{requirement.specifier}'",
        )


def _machine(home: Home) -> Iterator[Check]:
    folder = next(p for p in (home.root, *home.root.parents) if p.exists())
    free = shutil.disk_usage(folder).free / 2**30
    yield Check(
        "free disk", f"{free:.1f} GiB at {folder}", free > 3, "free 3 GiB or set OPENBA_HOME elsewhere"
    )
    writable = os.access(folder, os.W_OK | os.X_OK)
    yield Check("OPENBA_HOME", str(home.root), writable, "choose a folder you may write to")
    memory = psutil.virtual_memory().available / 2**30
    yield Check("free memory", f"{memory:.1f} GiB", memory > 8 or None, "the tiny pipeline needs up to 8 GiB")
    shared = Path("/dev/shm")  # noqa: S108
    if shared.exists():
        size = shutil.disk_usage(shared).free / 2**20
        yield Check(str(shared), f"{size:.0f} MiB", size > 200 or None, "give the container --shm-size=1g")


def _ports() -> Iterator[Check]:
    for name, usual in (("Prefect", 4200), ("Ray dashboard", 8265), ("MLflow", 5000)):
        port = choose_port(name, None, usual)
        yield Check(
            f"port for {name}",
            str(port),
            True if port == usual else None,
            f"{usual} is in use; {port} is taken instead",
        )


def _proxies() -> Iterator[Check]:
    """Name the servers that are asked through an HTTP proxy. `prepare_environment` exempts loopback."""
    proxies = {name: redact(os.environ[name]) for name in PROXY_VARIABLES if os.environ.get(name)}
    if not proxies:
        return
    named = ", ".join(f"{name}={address}" for name, address in proxies.items())
    yield Check("HTTP proxy", f"{named}; this machine itself is exempt", True)
    if any(address.startswith("socks") for address in proxies.values()) and not find_spec("socksio"):
        yield Check(
            "SOCKS proxy", "package socksio is missing", False, "pip install socksio, or unset ALL_PROXY"
        )
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        host = urlsplit(os.environ.get(name, "")).hostname
        if host and not proxy_bypass(host):
            yield Check(name, f"{host} is asked through the proxy", None, f"add {host} to no_proxy")


def prefect_server() -> Iterator[Check]:
    """Whether the server frees the slot of a dead flow run, and keeps slots over a restart."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return
    try:
        # Named once more: Prefect reads its settings when it is first imported, which may have been before.
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            rows = client.request("POST", "/automations/filter", json={"limit": 200}).json()
            settings = client.request("GET", "/admin/settings").json()
    except (httpx.HTTPError, PrefectException, ValueError) as error:
        yield Check("Prefect server", f"{url}: {error}", None, "start that server or unset PREFECT_API_URL")
        return
    enabled = {row["name"] for row in rows if row["enabled"]}
    missing = [name for name in AUTOMATIONS if name not in enabled]
    state = f"not on the server: {', '.join(missing)}" if missing else "on"
    yield Check("automations against dead runs", state, not missing or None, "infra/prefect/deploy.sh")
    storage = settings["server"]["concurrency"]["lease_storage"]
    is_persistent = not storage.endswith(".memory")
    remedy = f"start the server with {LEASES}, or its restart ends the flows that run"
    yield Check("places of running flows", storage, is_persistent or None, remedy)
