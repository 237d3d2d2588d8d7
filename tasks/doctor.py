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
    yield Check(
        "Python", version, sys.version_info[:2] == (3, 11), "install Python 3.11 and make a new .venv"
    )


def _packages() -> Iterator[Check]:
    """Compare every requirement with the installed version; FastAPI's pin is the fragile one."""
    for requirement_text in importlib.metadata.requires("openba") or []:
        requirement = Requirement(requirement_text)
        is_optional = requirement.marker is not None
        # The other extras are for machines that need them; `sample` is for the default pipeline.
        if is_optional and not requirement.marker.evaluate({"extra": "sample"}):  # type: ignore[union-attr]
            continue
        try:
            installed_version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                requirement.name,
                "missing",
                None if is_optional else False,
                f"pip install '{requirement.name}'",
            )
            continue
        # CPU builds of torch are versions such as 2.13.0+cpu, and the pins leave that part out.
        ok = requirement.specifier.contains(installed_version.partition("+")[0], prereleases=True)
        yield Check(
            requirement.name,
            installed_version,
            ok,
            f"pip install '{requirement.name}{requirement.specifier}'",
        )


def _machine(home: Home) -> Iterator[Check]:
    # The first run makes the home; until then its nearest existing parent decides.
    folder = next(p for p in (home.root, *home.root.parents) if p.exists())
    free_gib = shutil.disk_usage(folder).free / 2**30
    yield Check(
        "free disk",
        f"{free_gib:.1f} GiB at {folder}",
        free_gib > 3,
        "free 3 GiB or set OPENBA_HOME elsewhere",
    )
    is_writable = os.access(folder, os.W_OK | os.X_OK)
    yield Check("OPENBA_HOME", str(home.root), is_writable, "choose a folder you may write to")
    available_gib = psutil.virtual_memory().available / 2**30
    yield Check(
        "free memory",
        f"{available_gib:.1f} GiB",
        available_gib > 8 or None,
        "the tiny pipeline needs up to 8 GiB",
    )
    # Ray's object store lies there, and a container has 64 MiB of it by default.
    shared_memory = Path("/dev/shm")  # noqa: S108
    if shared_memory.exists():
        shared_mib = shutil.disk_usage(shared_memory).free / 2**20
        yield Check(
            str(shared_memory),
            f"{shared_mib:.0f} MiB",
            shared_mib > 200 or None,
            "give the container --shm-size=1g",
        )


def _ports() -> Iterator[Check]:
    # A port in use is no failure: a run takes the next free one.
    for server_name, usual in (("Prefect", 4200), ("Ray dashboard", 8265), ("MLflow", 5000)):
        port = choose_port(server_name, None, usual)
        yield Check(
            f"port for {server_name}",
            str(port),
            True if port == usual else None,
            f"{usual} is in use; {port} is taken instead",
        )


def _proxies() -> Iterator[Check]:
    """Name the servers that are asked through an HTTP proxy. `prepare_environment` exempts loopback."""
    proxies = {name: redact(os.environ[name]) for name in PROXY_VARIABLES if os.environ.get(name)}
    if not proxies:
        return
    proxy_list = ", ".join(f"{name}={address}" for name, address in proxies.items())
    yield Check("HTTP proxy", f"{proxy_list}; this machine itself is exempt", True)
    if any(address.startswith("socks") for address in proxies.values()) and not find_spec("socksio"):
        yield Check(
            "SOCKS proxy", "package socksio is missing", False, "pip install socksio, or unset ALL_PROXY"
        )
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        server_host = urlsplit(os.environ.get(name, "")).hostname
        if server_host and not proxy_bypass(server_host):
            yield Check(
                name, f"{server_host} is asked through the proxy", None, f"add {server_host} to no_proxy"
            )


def prefect_server() -> Iterator[Check]:
    """Whether the server frees the slot of a dead flow run, and keeps slots over a restart."""
    api_url = os.environ.get("PREFECT_API_URL")
    if not api_url:
        return
    try:
        # Named once more: Prefect reads its settings when it is first imported, which may have been before.
        with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
            automations = client.request("POST", "/automations/filter", json={"limit": 200}).json()
            settings = client.request("GET", "/admin/settings").json()
    except (httpx.HTTPError, PrefectException, ValueError) as error:
        yield Check(
            "Prefect server", f"{api_url}: {error}", None, "start that server or unset PREFECT_API_URL"
        )
        return
    enabled_names = {automation["name"] for automation in automations if automation["enabled"]}
    missing_automations = [name for name in AUTOMATIONS if name not in enabled_names]
    automation_state = f"not on the server: {', '.join(missing_automations)}" if missing_automations else "on"
    yield Check(
        "automations against dead runs",
        automation_state,
        not missing_automations or None,
        "infra/prefect/deploy.sh",
    )
    lease_storage = settings["server"]["concurrency"]["lease_storage"]
    is_persistent = not lease_storage.endswith(".memory")
    remedy = f"start the server with {LEASES}, or its restart ends the flows that run"
    yield Check("places of running flows", lease_storage, is_persistent or None, remedy)
