"""Every route while the registry fails whose address holds a password: it stands in no answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route

from openba.home import Home
from openba.serve.app import Application
from openba.serve.limits import Limits
from openba.serve.model_host import ModelHost
from openba.serve.server_metrics import ServerMetrics
from tasks.serve import Source, watch
from tests.harness.failing_service import failing_service

PASSWORD = "hunter2-Geheim"


@pytest.mark.parametrize("status", [500, 403])
def test_no_route_shows_a_password(
    status: int, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing_service(status) as registry:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@127.0.0.1:{registry.port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        texts = asyncio.run(ask_all(model_folder))
    assert any("mlflow" in path for path in registry.paths)
    assert "the present model goes on" in capsys.readouterr().err
    assert '"reload_error":"' in texts["/health"]
    for path, text in texts.items():
        assert PASSWORD not in text, path


async def ask_all(model_folder: Path) -> dict[str, str]:
    """The answers of all routes, after the alias could not be looked up."""
    host = ModelHost(Limits(max_rows=2), ServerMetrics())
    host.replace(host.load(model_folder, "small", "v1"))
    source = Source("models:/openba-chat@champion", Home(model_folder.parent))
    following = asyncio.create_task(watch(source, host, poll_seconds=0.01))
    while not host.reload_error:
        await asyncio.sleep(0.05)
    following.cancel()
    app = Application(host, None).asgi(["*"])
    texts = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        for route in app.routes:
            assert isinstance(route, Route)
            path = route.path.replace("{model:path}", "small")
            if "POST" in (route.methods or ()):
                body = {"prompt": "x"} if "chat" not in path else {"messages": []}
                answer = await client.post(path, json=body)
            else:
                answer = await client.get(path)
            texts[path] = answer.text + str(answer.headers)
    host.close()
    return texts
