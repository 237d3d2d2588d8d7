"""ASGI application: routes, authentication, error responses, and the chat page.

Owns HTTP. Request forms are in `openai_requests.py`, responses in `pending_response.py`, limits in
`limits.py`, the model in `model_host.py`. Built on Starlette without FastAPI, since bodies are read under our
own limits and errors have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

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
from openba.model.adapter_bank import NO_ADAPTER
from openba.redact import redact
from openba.serve.engine import EngineFailedError, QueueFullError
from openba.serve.limits import ClientDisconnectedError, check_key, read_body
from openba.serve.model_host import LoadedModel, ModelHost
from openba.serve.openai_requests import (
    MAX_QUOTED_CHARACTERS,
    ChatRequest,
    CompletionRequest,
    JSONObject,
    OpenAIRequest,
    RequestError,
    make_generations,
    parse_request,
)
from openba.serve.pending_response import CLIENT_CLOSED_REQUEST, EventStream, PendingResponse
from openba.serve.server_metrics import ServerMetrics

CHAT_PAGE_FILE = Path(__file__).with_name("chat.html")
_MODEL_ROUTE = "/v1/models/{model:path}"
_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/")
Endpoint = Callable[[HTTPRequest], Awaitable[Response]]


class Application:
    """Request handlers over one model host."""

    def __init__(self, model_host: ModelHost, api_key: str | None) -> None:
        """Args: a host with a loaded model; the API key, or None for no authentication."""
        self.model_host = model_host
        self.api_key = api_key
        self.limits = model_host.limits
        self.metrics = model_host.metrics
        # Read once: the policy's hashes have to be those of the page that is sent.
        page = CHAT_PAGE_FILE.read_text(encoding="utf-8")
        self.page_bytes = page.encode()
        self.page_policy = _content_security_policy(page)

    def asgi(self, allowed_hosts: Sequence[str]) -> Starlette:
        """Return the application, for requests whose Host header is in `allowed_hosts` (`*`: any)."""
        routes = [
            Route("/v1/chat/completions", self._generation_endpoint(ChatRequest), methods=["POST"]),
            Route("/v1/completions", self._generation_endpoint(CompletionRequest), methods=["POST"]),
            Route("/v1/models", self.list_models),
            Route(_MODEL_ROUTE, self.describe_model),
            Route("/health", self.health),
            Route("/metrics", self.metrics_page),
            Route("/", self.chat_page),
        ]
        # Outermost, so that errors of the router are counted and answered in the same form.
        middleware = [Middleware(ErrorBoundary, metrics=self.metrics, allowed_hosts=allowed_hosts)]
        return Starlette(
            routes=routes, middleware=middleware, exception_handlers={HTTPException: _http_error}
        )

    def _generation_endpoint(self, request_type: type[ChatRequest] | type[CompletionRequest]) -> Endpoint:
        async def endpoint(http: HTTPRequest) -> Response:
            received_at = time.monotonic()
            try:
                check_key(http.headers, self.api_key)
                body = await read_body(http.headers, http.receive, self.limits)
                request = parse_request(request_type, body)
                pending = await self._submit(request, received_at)
                if request.stream:
                    return EventStream(pending)
                return _json_response(await pending.complete(http.receive))
            except RequestError as error:
                return error_response(error)
            except ClientDisconnectedError:
                return Response(status_code=CLIENT_CLOSED_REQUEST)

        return endpoint

    async def _submit(self, request: OpenAIRequest, received_at: float) -> PendingResponse:
        """Encode the prompts and append them to the engine's queue."""
        model = self._current_model()
        self._check_model_name(request.model, model)
        if request.prompt_count > self.limits.max_prompts:
            message = f"prompt: at most {self.limits.max_prompts} in one request"
            raise RequestError(400, message, param="prompt")
        engine = model.engine
        max_length = engine.architecture.max_seq_length
        # In a thread: encoding a body of the largest size would block the event loop.
        sources = await asyncio.to_thread(request.encode, model.tokenizer, max_length)
        generations = make_generations(
            request,
            sources,
            longest_answer=engine.max_new_tokens,
            vocabulary_size=engine.vocabulary_size,
            max_answers=self.limits.max_prompts,
        )
        number = model.adapters.get(request.model or "", NO_ADAPTER)
        for generation in generations:
            generation.adapter = number
        pending = PendingResponse(request, model, generations, self.limits, self.metrics, received_at)
        try:
            if self._current_model() is not model:
                # Replaced while the prompts were encoded: the old engine takes no more generations.
                return await self._submit(request, received_at)
            engine.submit(generations)
        except QueueFullError:
            message = "too many requests wait already; come again in a moment"
            raise RequestError(429, message, "queue_full") from None
        except EngineFailedError:
            raise RequestError(503, "the engine has ended; the server stops", "engine_error") from None
        except UserError as error:
            raise RequestError(400, str(error)) from None
        return pending

    @staticmethod
    def _check_model_name(name: str | None, model: LoadedModel) -> None:
        """Raise a 404 for another model's name; a missing or empty name means the current model."""
        if name and name not in model.names:
            quoted_name = repr(name[:MAX_QUOTED_CHARACTERS])
            served_names = ", ".join(map(repr, model.names))
            verb = "is" if len(model.names) == 1 else "are"
            message = f"model: {quoted_name} is not served, {served_names} {verb}"
            raise RequestError(404, message, "model_not_found", "model")

    def _current_model(self) -> LoadedModel:
        assert self.model_host.current is not None  # loaded before the server listens
        return self.model_host.current

    async def list_models(self, http: HTTPRequest) -> Response:
        """List the model that is served, and the adapters over it."""
        try:
            check_key(http.headers, self.api_key)
        except RequestError as error:
            return error_response(error)
        cards = [self._model_card(name) for name in self._current_model().names]
        return _json_response({"object": "list", "data": cards})

    async def describe_model(self, http: HTTPRequest) -> Response:
        """Describe the model named in the path; 404 for another name."""
        try:
            check_key(http.headers, self.api_key)
            self._check_model_name(http.path_params["model"], self._current_model())
        except RequestError as error:
            return error_response(error)
        return _json_response(self._model_card(http.path_params["model"]))

    def _model_card(self, name: str) -> JSONObject:
        model = self._current_model()
        return {
            "id": name,
            "object": "model",
            "created": model.loaded_at,
            "owned_by": "openba",
            "version": model.version,
        }

    async def health(self, http: HTTPRequest) -> Response:
        """Report the current model and the state of its engine; 503 unless it is `ok`."""
        model = self._current_model()
        state = self.model_host.state()
        body: JSONObject = {
            "status": state,
            "model": model.name,
            "version": model.version,
            "rows": len(model.engine.active),
            "waiting": len(model.engine.queue),
            "reload_error": self.model_host.reload_error or None,
        }
        # 503 makes a load balancer or a liveness probe take the server out.
        return _json_response(body, 200 if state == "ok" else 503)

    async def metrics_page(self, http: HTTPRequest) -> Response:
        """Return the metrics in Prometheus' text format."""
        engine = self._current_model().engine
        # Set at the scrape: the engine updates counters of its own and no metrics in its decoding loop.
        self.metrics.decoder_steps.set(engine.steps)
        self.metrics.active_rows.set(len(engine.active))
        self.metrics.queued_generations.set(len(engine.queue))
        return Response(redact(self.metrics.render().decode()), media_type="text/plain; version=0.0.4")

    async def chat_page(self, http: HTTPRequest) -> Response:
        """Return the chat page, one static file that sends requests to this server only."""
        headers = {"content-security-policy": self.page_policy, "x-content-type-options": "nosniff"}
        return Response(self.page_bytes, media_type="text/html", headers=headers)


class ErrorBoundary:
    """Outermost middleware: checks the Host header, counts responses, handles exceptions.

    An exception is logged as one line on stderr and answered by a 500 in OpenAI's form, without its text.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Starlette reports the status only through the messages that pass here.
        sent_status = 0

        async def send_and_record(message: Message) -> None:
            nonlocal sent_status
            if message["type"] == "http.response.start":
                sent_status = message["status"]
            await send(message)

        try:
            host_name = Headers(scope=scope).get("host", "").partition(":")[0]
            if "*" in self.allowed_hosts or host_name in self.allowed_hosts:
                await self.app(scope, receive, send_and_record)
            else:
                error_text = "host: the request names another server; ask for this one by its own name"
                response = error_response(RequestError(400, error_text))
                await response(scope, receive, send_and_record)
        except Exception as error:
            log_line = f"openba: {scope['method']} {_metric_path(scope)}: {one_line(error)}"
            print(log_line, file=sys.stderr, flush=True)
            if not sent_status:
                error_text = "an error of the server; its log says which"
                response = error_response(RequestError(500, error_text, "internal_error"))
                await response(scope, receive, send_and_record)
        finally:
            recorded_status = scope.get("openba.status", sent_status)
            self.metrics.requests.labels(_metric_path(scope), str(recorded_status)).inc()


def _metric_path(scope: Scope) -> str:
    """Return the path as a metrics label with few values, whatever paths clients request."""
    path = scope["path"]
    if path.startswith("/v1/models/"):
        return _MODEL_ROUTE
    return path if path in _ROUTES else "other"


async def _http_error(http: HTTPRequest, error: Exception) -> Response:
    """Return the error response for an unknown path or method."""
    assert isinstance(error, HTTPException)
    path = http.url.path[:MAX_QUOTED_CHARACTERS]
    return error_response(RequestError(error.status_code, f"{http.method} {path}: {error.detail}"))


def _json_response(body: JSONObject, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def error_response(error: RequestError) -> Response:
    """Return the HTTP response for an error."""
    response = _json_response(error.body(), error.status)
    # Rows are freed at every step, so that a second is long enough to wait.
    if error.status == 429:
        response.headers["retry-after"] = "1"
    if error.status in (408, 413, 415):
        # The rest of the body is not read, so the connection cannot carry another request.
        response.headers["connection"] = "close"
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def _content_security_policy(page: str) -> str:
    """Return a policy that allows only the page's own script and style, and requests to this server only."""

    def source_hashes(tag: str) -> str:
        # Inline script and style are allowed by their hashes; text of the model that the page shows can then
        # run nothing, even if the page failed to escape it.
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [hashlib.sha256(content.encode()).digest() for content in contents]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {source_hashes('script')}; style-src {source_hashes('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
