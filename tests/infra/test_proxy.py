"""The shipped configuration, run by nginx in front of a real Prometheus: TLS, passwords, names."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tasks.services import LOOPBACK, Service, answers, free_port
from tests.harness.programs import require_programs

DOMAIN, PASSWORD = "openba.example", "only for tests"
UPSTREAM = re.compile(r"set \$upstream ([\w-]+):(\d+);")
OWN_AUTHENTICATION = {"prefect", "ray", "chat"}
"""Whose services ask for a password, token or key themselves."""


@pytest.fixture(scope="module")
def template(root: Path) -> str:
    return (root / "infra" / "proxy" / "openba.conf.template").read_text()


@dataclass
class Proxy:
    """A running nginx, and clients of its names."""

    https: int
    http: int
    authority: Path

    def get(self, name: str, path: str = "/", **options: object) -> httpx.Response:
        context = ssl.create_default_context(cafile=str(self.authority))
        with httpx.Client(verify=context, trust_env=False) as client:
            return client.get(
                f"https://{LOOPBACK}:{self.https}{path}",
                headers={"Host": f"{name}.{DOMAIN}"},
                extensions={"sni_hostname": f"{name}.{DOMAIN}"},
                **options,  # type: ignore[arg-type]
            )


@pytest.fixture(scope="module")
def proxy(root: Path, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    require_programs("nginx", "openssl", "prometheus")
    folder = tmp_path_factory.mktemp("proxy")
    tls = folder / "infra" / "proxy" / "tls"
    (commands,) = re.findall(
        r"```bash\n([^`]*openssl req[^`]*)```", (root / "docs" / "cluster.md").read_text()
    )
    subprocess.run(
        ["bash", "-euc", commands], cwd=folder, input=f"{PASSWORD}\n", text=True, check=True,
        env=os.environ | {"DOMAIN": DOMAIN}, capture_output=True,
    )  # fmt: skip
    tls.chmod(0o755)
    (tls / "people.htpasswd").chmod(0o644)
    backend, https, http = free_port(), free_port(), free_port()
    text = template.replace("${DOMAIN}", DOMAIN).replace("/etc/nginx/tls", str(tls))
    text = UPSTREAM.sub(f"set $upstream {LOOPBACK}:{backend};", text)
    text = text.replace("listen 443 ssl", f"listen {LOOPBACK}:{https} ssl")
    text = text.replace("listen 80 ", f"listen {LOOPBACK}:{http} ")
    (folder / "openba.conf").write_text(text)
    main = "user root;\n" if os.getuid() == 0 else ""
    main += f"pid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n access_log off;\n"
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        main += f" {kind}_temp_path {folder}/{kind};\n"
    (folder / "nginx.conf").write_text(f"{main} include {folder}/openba.conf;\n}}\n")
    (folder / "prometheus.yaml").write_text("")
    services = [
        Service(
            "prometheus",
            ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={LOOPBACK}:{backend}"],
            folder / "prometheus.log", lambda: answers(f"http://{LOOPBACK}:{backend}/-/ready"), {},
        ),
        Service(
            "nginx", ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"],
            folder / "nginx.log", lambda: _redirects(http), {},
        ),
    ]  # fmt: skip
    try:
        for service in services:
            service.wait()
        yield Proxy(https, http, tls / "tls.crt")
    finally:
        for service in services:
            service.stop()


def _redirects(port: int) -> bool:
    try:
        return httpx.get(f"http://{LOOPBACK}:{port}/", trust_env=False).status_code == 301
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("name", ["mlflow", "prometheus", "grafana"])
def test_a_page_without_a_password_of_its_own_asks_for_one(proxy: Proxy, name: str) -> None:
    assert proxy.get(name, "/-/ready").status_code == 401
    assert proxy.get(name, "/-/ready", auth=("li.wei", "wrong")).status_code == 401
    assert proxy.get(name, "/-/ready", auth=("li.wei", PASSWORD)).status_code == 200


@pytest.mark.parametrize("name", sorted(OWN_AUTHENTICATION))
def test_the_header_of_a_service_that_asks_itself_is_left_to_it(proxy: Proxy, name: str) -> None:
    assert proxy.get(name, "/-/ready").status_code == 200


def test_only_tls_and_only_our_names(proxy: Proxy) -> None:
    answer = httpx.get(
        f"http://{LOOPBACK}:{proxy.http}/x", headers={"Host": f"mlflow.{DOMAIN}"}, trust_env=False
    )
    assert (answer.status_code, answer.headers["location"]) == (301, f"https://mlflow.{DOMAIN}/x")
    with pytest.raises(httpx.ConnectError):
        proxy.get("elsewhere")
    old = ssl.create_default_context(cafile=str(proxy.authority))
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError), httpx.Client(verify=old, trust_env=False) as client:
        client.get(f"https://{LOOPBACK}:{proxy.https}/", extensions={"sni_hostname": f"mlflow.{DOMAIN}"})


def test_figures_of_the_served_model_stay_inside(proxy: Proxy) -> None:
    assert proxy.get("chat", "/metrics").status_code == 404
    assert proxy.get("prometheus", "/metrics", auth=("li.wei", PASSWORD)).status_code == 200


def test_every_upstream_is_a_service_on_its_port(template: str, root: Path) -> None:
    services = yaml.safe_load((root / "infra" / "compose.yaml").read_text())["services"]
    upstreams = UPSTREAM.findall(template)
    assert {name for name, _ in upstreams} == {
        "prefect-server",
        "ray-head",
        "serve",
        "mlflow",
        "prometheus",
        "grafana",
    }
    for name, port in upstreams:
        assert any(published.endswith(f":{port}:{port}") for published in services[name]["ports"]), name
    mounted = {volume.split(":")[0] for volume in services["proxy"]["volumes"]}
    assert mounted == {"./proxy/openba.conf.template", "./proxy/tls"}
