"""Where state lives, and that no password gets into an address that others read."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import httpcore
import httpx
import pytest
import requests

from openba.errors import UserError
from openba.home import Home, prepare_environment


@pytest.mark.parametrize(
    "url", ["s3://key:hidden@bucket/store", "sftp://me:hidden@host/store", "memory://hidden@x"]
)
def test_a_store_with_credentials_in_its_address_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBA_STORE", url)
    with pytest.raises(UserError, match=r"OPENBA_STORE=.*AWS_ACCESS_KEY_ID") as refused:
        _ = Home(tmp_path).store
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("url", ["memory://bucket/store", "/a/folder@2x/store"])
def test_an_address_without_any_is_taken(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBA_STORE", url)
    assert Home(tmp_path).store.root == url


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of ours, none that is empty (make sets MAKEFLAGS so), and an empty working directory."""
    for name, value in list(os.environ.items()):
        ours = name.startswith(("OPENBA_", "MLFLOW_", "PREFECT_", "RAY_"))
        if ours or not value or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return monkeypatch


def test_empty_variables_mean_unset(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    unset = Home.from_environment()
    assert unset.root == tmp_path / ".openba"
    for name in ("OPENBA_HOME", "OPENBA_STORE", "MLFLOW_TRACKING_URI"):
        environment.setenv(name, "")
    home = Home.from_environment()
    assert (home, home.store.root, home.tracking_uri) == (unset, unset.store.root, unset.tracking_uri)


def test_empty_variables_of_the_servers_are_removed(environment: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "OPENBA_API_KEY"):
        environment.setenv(name, "")
    environment.setenv("RAY_AUTH_MODE", "token")
    environment.setenv("EMPTY_AND_NOT_OURS", "")
    prepare_environment()
    assert [name for name, value in os.environ.items() if not value] == ["EMPTY_AND_NOT_OURS"]
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_relative_paths_stay_where_they_were_given(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """The addresses are absolute, so that another working directory does not change them."""
    environment.setenv("OPENBA_HOME", "state")
    environment.setenv("OPENBA_STORE", "outputs")
    environment.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    home = Home.from_environment()
    assert home.root == tmp_path / "state"
    assert home.store.root == str(tmp_path / "outputs")
    assert home.tracking_uri == f"sqlite:///{tmp_path}/runs.db"
    environment.setenv("OPENBA_HOME", "~/state")
    assert Home.from_environment().root == tmp_path / "user" / "state"


@pytest.mark.parametrize("name", ["50%", "what?", "run#3"])
def test_a_home_that_no_address_can_hold_is_refused(name: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENBA_HOME", name)
    with pytest.raises(UserError, match=r"^OPENBA_HOME=.*choose another folder$"):
        Home.from_environment()


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^OPENBA_HOME=.*file/home: user \d+ cannot write there"):
        Home(tmp_path / "file" / "home").require_writable()


@pytest.mark.parametrize("exempt", [{}, {"NO_PROXY": "intra.example"}, {"no_proxy": "*"}])
def test_loopback_never_goes_through_a_proxy(exempt: dict[str, str], environment: pytest.MonkeyPatch) -> None:
    """Asked of the libraries that talk to our servers: urllib, requests (MLflow, Ray), httpx (Prefect)."""
    for name, value in {"http_proxy": "http://proxy.example:3128", **exempt}.items():
        environment.setenv(name, value)
    prepare_environment()
    for url in ("http://127.0.0.1:4200/api", "http://localhost:8265", "http://[::1]:5000"):
        assert urllib.request.proxy_bypass(urlsplit(url).hostname or "")
        assert requests.utils.get_environ_proxies(url) == {}
        transport = httpx.Client()._transport_for_url(httpx.URL(url))
        assert not isinstance(getattr(transport, "_pool", None), httpcore.HTTPProxy)
    elsewhere = requests.utils.get_environ_proxies("http://mlflow.example")
    assert bool(elsewhere) == ("*" not in exempt.values())
    assert not requests.utils.get_environ_proxies("http://intra.example") or not exempt


def test_a_file_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "home"
    file.touch()
    monkeypatch.setenv("OPENBA_HOME", str(file))
    with pytest.raises(UserError, match="a file, not a folder"):
        Home.from_environment()
