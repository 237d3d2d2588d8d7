"""The ASGI application: paths, who may ask, the form of every error, and the chat page.

Owns HTTP. Forms of requests are `protocol.py`'s, answers `answer.py`'s, limits `limits.py`'s, the model
`host.py`'s. Starlette without FastAPI: bodies are read under our own limits, and errors have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openba.errors import UserError, one_line
from openba.redact import redact
from openba.serve.answer import CLIENT_GONE, Answer, Stream
from openba.serve.engine import EngineFailedError, Full
from openba.serve.host import Host, Served
from openba.serve.limits import Disconnected, check_key, read_body
from openba.serve.metrics import Metrics
from openba.serve.protocol import (
    MOST_NAMED,
    ChatRequest,
    CompletionRequest,
    Refused,
    Request,
    jobs_of,
    parse,
)

PAGE = Path(__file__).with_name("chat.html")
_MODEL = "/v1/models/{model:path}"
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/")


class Application:
    """Handlers that share one host."""

    def __init__(self, host: Host, key: str | None) -> None:
        """Args: the host, with a model; the API key, or None for none."""
        self.host, self.key = host, key
        self.limits, self.metrics = host.limits, host.metrics
        page = PAGE.read_text(encoding="utf-8")
        self.page, self.policy = page.encode(), _policy(page)

    def asgi(self, hosts: Sequence[str]) -> Starlette:
        """Return the application, for requests that name one of `hosts` (`*`: any)."""
        routes = [
            Route("/v1/chat/completions", self._endpoint(ChatRequest), methods=["POST"]),
            Route("/v1/completions", self._endpoint(CompletionRequest), methods=["POST"]),
            Route("/v1/models", self.models),
            Route(_MODEL, self.model),
            Route("/health", self.health),
            Route("/metrics", self.metrics_page),
            Route("/", self.chat_page),
        ]
        middleware = [Middleware(ErrorBoundary, metrics=self.metrics, hosts=hosts)]
        return Starlette(
            routes=routes, middleware=middleware, exception_handlers={HTTPException: _http_error}
        )

    def _endpoint(self, kind: type[ChatRequest] | type[CompletionRequest]) -> Callable[..., Any]:
        async def endpoint(http: HTTPRequest) -> Response:
            began = time.monotonic()
            try:
                check_key(http.headers, self.key)
                request = parse(kind, await read_body(http.headers, http.receive, self.limits))
                answer = await self._begin(request, began)
                return Stream(answer) if request.stream else _json(await answer.complete(http.receive))
            except Refused as refused:
                return refusal(refused)
            except Disconnected:
                return Response(status_code=CLIENT_GONE)

        return endpoint

    async def _begin(self, request: Request, began: float) -> Answer:
        """Let the request's prompts wait for rows."""
        served = self._present()
        if request.model not in (None, "", served.name):
            asked = repr(request.model[:MOST_NAMED])
            message = f"model: {asked} is not served, {served.name!r} is"
            raise Refused(404, message, "model_not_found", "model")
        if request.prompts > self.limits.prompts:
            raise Refused(400, f"prompt: at most {self.limits.prompts} in one request", param="prompt")
        length = served.engine.model.architecture.max_seq_length
        sources = await asyncio.to_thread(request.sources, served.tokenizer, length)
        engine = served.engine
        jobs = jobs_of(request, sources, engine.longest, engine.used, self.limits.prompts)
        answer = Answer(request, served, jobs, self.limits, self.metrics, began)
        try:
            if self._present() is not served:  # replaced while the prompts were read; its queue is closed
                return await self._begin(request, began)
            engine.submit(jobs)
        except Full:
            message = "too many requests wait already; come again in a moment"
            raise Refused(429, message, "queue_full") from None
        except EngineFailedError:
            raise Refused(503, "the engine has ended; the server stops", "engine_error") from None
        except UserError as error:
            raise Refused(400, str(error)) from None
        return answer

    def _present(self) -> Served:
        assert self.host.present is not None  # the server starts with one
        return self.host.present

    async def models(self, http: HTTPRequest) -> Response:
        """List the one model that is served."""
        try:
            check_key(http.headers, self.key)
        except Refused as refused:
            return refusal(refused)
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, http: HTTPRequest) -> Response:
        """Describe the model of this name, if it is served."""
        try:
            check_key(http.headers, self.key)
        except Refused as refused:
            return refusal(refused)
        card, asked = self._card(), http.path_params["model"]
        if asked != card["id"]:
            message = f"model: {asked[:MOST_NAMED]!r} is not served, {card['id']!r} is"
            return refusal(Refused(404, message, "model_not_found", "model"))
        return _json(card)

    def _card(self) -> dict[str, Any]:
        served = self._present()
        return {
            "id": served.name,
            "object": "model",
            "created": served.loaded,
            "owned_by": "openba",
            "version": served.version,
        }

    async def health(self, http: HTTPRequest) -> Response:
        """Tell which model answers, and whether its engine does; 503 if not."""
        served = self._present()
        state = self.host.state()
        body = {
            "status": state,
            "model": served.name,
            "version": served.version,
            "rows": len(served.engine.rows),
            "waiting": len(served.engine.waiting),
            "reload_error": self.host.trouble or None,
        }
        return _json(body, 200 if state == "ok" else 503)

    async def metrics_page(self, http: HTTPRequest) -> Response:
        """Show the metrics in Prometheus' text form."""
        engine = self._present().engine
        self.metrics.steps.set(engine.steps)
        self.metrics.rows.set(len(engine.rows))
        self.metrics.waiting.set(len(engine.waiting))
        return Response(redact(self.metrics.text().decode()), media_type="text/plain; version=0.0.4")

    async def chat_page(self, http: HTTPRequest) -> Response:
        """Send the one static file, which talks to this server only."""
        headers = {"content-security-policy": self.policy, "x-content-type-options": "nosniff"}
        return Response(self.page, media_type="text/html", headers=headers)


class ErrorBoundary:
    """The layer around all handlers: checks the host's name, counts answers, catches exceptions.

    An exception is one line on stderr and a 500 in OpenAI's form that repeats nothing of it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Sequence[str]) -> None:
        self.app, self.metrics, self.hosts = app, metrics, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            name = Headers(scope=scope).get("host", "").partition(":")[0]
            if "*" in self.hosts or name in self.hosts:
                await self.app(scope, receive, note_status)
            else:
                message = "host: the request names another server; ask for this one by its own name"
                await refusal(Refused(400, message))(scope, receive, note_status)
        except Exception as error:
            print(
                f"openba: {scope['method']} {_label(scope)}: {one_line(error)}", file=sys.stderr, flush=True
            )
            if not status:
                message = "an error of the server; its log says which"
                await refusal(Refused(500, message, "internal_error"))(scope, receive, note_status)
        finally:
            counted = scope.get("openba.status", status)
            self.metrics.requests.labels(_label(scope), str(counted)).inc()


def _label(scope: Scope) -> str:
    """Return the path as a label of the metrics: few values, whatever clients ask for."""
    path = scope["path"]
    if path.startswith("/v1/models/"):
        return _MODEL
    return path if path in _PATHS else "other"


async def _http_error(http: HTTPRequest, error: Exception) -> Response:
    """Answer an unknown path or method in the same form as other errors."""
    assert isinstance(error, HTTPException)
    path = http.url.path[:MOST_NAMED]
    return refusal(Refused(error.status_code, f"{http.method} {path}: {error.detail}"))


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def refusal(refused: Refused) -> Response:
    """Return the response that carries a refusal."""
    response = _json(refused.body(), refused.status)
    if refused.status == 429:
        response.headers["retry-after"] = "1"
    if refused.status in (408, 413, 415):  # the rest of the body is not read
        response.headers["connection"] = "close"
    if refused.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def _policy(page: str) -> str:
    """Return a policy by which only the page's own script and style run, and reach this server only."""

    def digests(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts
        )

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
