"""infra/compose.yaml as its readers see it: valid, pinned, without secrets, closed to the outside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.infra.conftest import variables

NAMED = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")
PAGES = {"prefect-server", "mlflow", "ray-head", "prometheus", "grafana", "serve"}
DEFAULTS = {
    "LISTEN": "127.0.0.1",
    "DOMAIN": "localhost",
    "PREFECT_PAGE": "http://127.0.0.1:4200",
    "SERVED_MODEL": "openba-chat",
    "RAY_FOLDER": "ray",
}


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "infra" / "compose.yaml").read_text()


@pytest.fixture(scope="module")
def settings(root: Path, versions: dict[str, str]) -> dict[str, str]:
    """What `docker compose --env-file versions.env --env-file .env` knows, each secret given a value."""
    example = variables(root / "infra" / ".env.example")
    return versions | {name: value or f"secret-{name.lower()}" for name, value in example.items()}


@pytest.fixture(scope="module")
def compose(text: str, settings: dict[str, str]) -> dict[str, Any]:
    return yaml.safe_load(NAMED.sub(lambda found: settings.get(found[1]) or found[3], text))


def test_valid_by_the_compose_specification(compose: dict[str, Any]) -> None:
    assert set(PyCompose.from_yaml(yaml.safe_dump(compose)).service_names()) == set(compose["services"])
    for wrong in ({"imagee": "x"}, {"image": "x", "ports": ["127.0.0.1:80:web"]}):
        with pytest.raises(ValueError, match=r"imagee|port"):
            PyCompose.from_yaml(yaml.safe_dump({"services": {"broken": wrong}}))


def test_every_variable_has_one_source(text: str, settings: dict[str, str]) -> None:
    """A missing one stops `up` with its name (`:?`), unless it is one of the few with a default."""
    for name, sign, default in NAMED.findall(text):
        assert name in settings or name in DEFAULTS
        assert (sign, default) == (("-", DEFAULTS[name]) if name in DEFAULTS else ("?", "")), name


def test_images_are_pinned_in_one_place(text: str, root: Path, versions: dict[str, str]) -> None:
    assert all(re.fullmatch(r"\$\{\w+_IMAGE:\?\}", image) for image in re.findall(r"image: (.*)", text))
    images = [value for name, value in versions.items() if name.endswith("_IMAGE")]
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", image) for image in images), images


def test_pages_are_on_loopback_and_nothing_else_is_published(compose: dict[str, Any]) -> None:
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert {name for name, ports in published.items() if ports} == PAGES | {"proxy"}
    pages = [port for name, ports in published.items() for port in ports if name != "proxy"]
    assert all(port.startswith("127.0.0.1:") for port in pages)
    assert compose["services"]["proxy"]["profiles"] == ["public"], "only when it is asked for"


def test_every_service_has_a_limit_and_rotated_logs(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service.get("mem_limit"), name
        assert service["logging"]["options"]["max-size"], name


def test_deployments_are_made_before_a_worker_starts(compose: dict[str, Any], root: Path) -> None:
    services = compose["services"]
    assert services["prefect-worker"]["depends_on"]["deployments"] == {
        "condition": "service_completed_successfully"
    }
    assert (root / services["deployments"]["command"].removeprefix("/openba/")).exists()
    assert services["prefect-worker"]["environment"]["OPENBA_HOME"].startswith("/")


def test_services_wait_for_what_they_need(compose: dict[str, Any]) -> None:
    """Each `service_healthy` has a health check, and nobody waits in a circle."""
    services = compose["services"]
    needs: dict[str, dict[str, Any]] = {}
    for name, service in services.items():
        wanted = service.get("depends_on", {})
        needs[name] = wanted if isinstance(wanted, dict) else {other: {} for other in wanted}
        for other, how in needs[name].items():
            assert how.get("condition") != "service_healthy" or "healthcheck" in services[other]
    started: set[str] = set()
    while ready := {name for name in needs.keys() - started if needs[name].keys() <= started}:
        started |= ready
    assert started == services.keys()


def test_volumes_and_mounted_files_are_there(compose: dict[str, Any], root: Path) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source in ("./proxy/tls", "./backups"):  # made by hand, and ignored by git
                continue
            assert (
                (root / "infra" / source).exists() if source.startswith(".") else source in compose["volumes"]
            )


def test_ray_asks_for_its_token_and_mlflow_for_its_names(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("ray-head", "prefect-worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
    assert "--allowed-hosts mlflow:5000," in services["mlflow"]["command"]
    worker = services["prefect-worker"]["environment"]
    assert (
        worker["PREFECT_API_AUTH_STRING"]
        == services["prefect-server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    )


def test_no_secret_stands_on_a_command_line(compose: dict[str, Any]) -> None:
    told = [
        f"{service.get('command')} {service.get('healthcheck')}" for service in compose["services"].values()
    ]
    assert not [line for line in told if "secret-" in line]
