"""The ASGI application: paths, answers whole or in pieces, and the chat page.

Owns HTTP. Forms of bodies are `protocol.py`'s, limits `limits.py`'s, the model `host.py`'s. Starlette without
FastAPI: bodies are read under limits of our own, and errors have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from openba.errors import UserError
from openba.serve.engine import Full, Job
from openba.serve.host import Host, Served
from openba.serve.limits import Disconnected, Limits, check_key, read_body
from openba.serve.metrics import Metrics
from openba.serve.protocol import Body, ChatRequest, CompletionRequest, Refused, Request, Text, jobs_of, parse

PAGE = Path(__file__).with_name("chat.html")
_GONE = 499
"""Status in the metrics for a client that left before its answer (no client ever sees it)."""


class Application:
    """Handlers that share one host."""

    def __init__(self, host: Host, key: str | None) -> None:
        """Args: the host, with a model; the API key, or None for none."""
        self.host, self.key, self.limits, self.metrics = host, key, host.limits, host.metrics
        page = PAGE.read_text(encoding="utf-8")
        self.page, self.policy = page.encode(), _policy(page)

    def asgi(self, hosts: Sequence[str]) -> Starlette:
        """The application, for requests that name one of `hosts` (`*`: any)."""
        routes = [
            Route("/v1/chat/completions", self._endpoint(ChatRequest), methods=["POST"]),
            Route("/v1/completions", self._endpoint(CompletionRequest), methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/metrics", self.shown),
            Route("/", self.chat_page),
        ]
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
        return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _plain})

    def _endpoint(self, kind: type[ChatRequest] | type[CompletionRequest]) -> Callable[..., Any]:
        async def endpoint(http: HTTPRequest) -> Response:
            began, path = time.monotonic(), http.url.path
            try:
                check_key(http.headers, self.key)
                request = parse(kind, await read_body(http.headers, http.receive, self.limits))
                answer = await self._begin(request, began)
                if request.stream:
                    return Stream(answer, self._count, path)
                response = _json(await answer.whole(http.receive))
            except Refused as refused:
                response = _refusal(refused)
            except Disconnected:
                self._count(path, _GONE)
                return Response(status_code=_GONE)
            self._count(path, response.status_code)
            return response

        return endpoint

    def _count(self, path: str, status: int) -> None:
        self.metrics.requests.labels(path, str(status)).inc()

    async def _begin(self, request: Request, began: float) -> Answer:
        """Let the request's prompts wait for rows."""
        served = self._present()
        if request.model not in (None, "", served.name):
            raise Refused(
                404, f"model: {request.model!r} is not served, {served.name!r} is", "model_not_found", "model"
            )
        length = served.engine.model.architecture.max_seq_length
        sources = await asyncio.to_thread(request.sources, served.tokenizer, length)
        if len(sources) > self.limits.prompts:
            raise Refused(400, f"prompt: at most {self.limits.prompts} in one request", param="prompt")
        jobs = jobs_of(request, sources, served.engine.longest)
        answer = Answer(request, served, jobs, self.limits, self.metrics, began)
        try:
            if self._present() is not served:  # replaced while the prompts were read; its queue is closed
                return await self._begin(request, began)
            served.engine.submit(jobs)
        except Full:
            raise Refused(
                429, "too many requests wait already; come again in a moment", "queue_full"
            ) from None
        except UserError as error:
            raise Refused(400, str(error)) from None
        return answer

    def _present(self) -> Served:
        assert self.host.present is not None  # the server starts with one
        return self.host.present

    async def models(self, http: HTTPRequest) -> Response:
        """The one model that is served."""
        try:
            check_key(http.headers, self.key)
        except Refused as refused:
            return _refusal(refused)
        served = self._present()
        card = {"id": served.name, "object": "model", "owned_by": "openba", "version": served.version}
        return _json({"object": "list", "data": [card]})

    async def health(self, http: HTTPRequest) -> Response:
        """Which model answers, and whether its engine does; 503 if not."""
        served, engine = self._present(), self._present().engine
        alive = engine.thread.is_alive()
        body: dict[str, Any] = {"status": "ok" if alive else "dead"}
        body |= {"model": served.name, "version": served.version}
        body |= {
            "rows": len(engine.rows),
            "waiting": len(engine.waiting),
            "reload_error": self.host.trouble or None,
        }
        return _json(body, 200 if alive else 503)

    async def shown(self, http: HTTPRequest) -> Response:
        """The metrics."""
        engine = self._present().engine
        self.metrics.steps.set(engine.steps)
        self.metrics.rows.set(len(engine.rows))
        self.metrics.waiting.set(len(engine.waiting))
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def chat_page(self, http: HTTPRequest) -> Response:
        """One static file that talks to this server only."""
        headers = {"content-security-policy": self.policy, "x-content-type-options": "nosniff"}
        return Response(self.page, media_type="text/html", headers=headers)


class Answer:
    """One request being answered."""

    def __init__(
        self,
        request: Request,
        served: Served,
        jobs: list[Job],
        limits: Limits,
        metrics: Metrics,
        began: float,
    ) -> None:
        self.request, self.served, self.jobs, self.limits = request, served, jobs, limits
        self.metrics, self.began = metrics, began
        self.body = Body(request, served.name, served.version, uuid.uuid4().hex)
        self.texts = [Text(served.tokenizer, job, request.stops) for job in jobs]
        self.changed = asyncio.Event()
        for job in jobs:
            job.wake = self.changed.set

    async def whole(self, receive: Receive) -> dict[str, Any]:
        """Wait for all of it.

        Raises:
            Refused: it took too long, or the engine failed.
            Disconnected: the client left; its rows are freed.
        """
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            while not self._ended():
                woken = asyncio.ensure_future(self.changed.wait())
                left = self.limits.answer - (time.monotonic() - self.began)
                await asyncio.wait({gone, woken}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                self.changed.clear()
                if gone.done():
                    raise Disconnected
                if left <= 0:
                    raise Refused(503, f"no answer in {self.limits.answer:g} s", "timeout")
            self._check()
            return self.body.whole(self.texts)
        finally:
            gone.cancel()
            self.end()

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        """Its parts as they are written; the last of them may be an error's body."""
        told = [False] * len(self.jobs)
        if self.body.chat:
            yield self.body.piece(0, None)
        deadline = asyncio.get_running_loop().time() + self.limits.answer - (time.monotonic() - self.began)
        try:
            while not all(told):
                async with asyncio.timeout_at(deadline):
                    await self.changed.wait()
                self.changed.clear()
                for index, text in enumerate(self.texts):
                    if told[index]:
                        continue
                    last, first = (
                        text.job.reason is not None,
                        not text.told,
                    )  # before the text, which may grow
                    if piece := text.more(last):
                        if first:
                            self.metrics.first.observe(time.monotonic() - self.began)
                        yield self.body.piece(index, piece)
                    if last or text.stopped:
                        self._check()
                        told[index] = text.job.cancelled = True
                        yield self.body.piece(index, "", text.reason)
            if self.request.stream_options and self.request.stream_options.include_usage:
                yield self.body.used(self.jobs)
        except TimeoutError:
            yield Refused(503, f"no answer in {self.limits.answer:g} s", "timeout").body()
        except Refused as refused:
            yield refused.body()

    def end(self) -> None:
        """Nobody wants it any more: free the rows and count what it was."""
        for job in self.jobs:
            job.cancelled = True
            job.wake = _nothing  # a cycle of job and answer less
        self.metrics.seconds.observe(time.monotonic() - self.began)
        self.metrics.read.inc(sum(len(job.source) for job in self.jobs))
        self.metrics.written.inc(sum(len(job.written) for job in self.jobs))

    def _ended(self) -> bool:
        for text in self.texts:
            if text.stops and text.job.reason is None:
                text.whole()
                text.job.cancelled |= text.stopped
        return all(text.reason is not None for text in self.texts)

    def _check(self) -> None:
        if failed := next((job for job in self.jobs if job.reason == "error"), None):
            raise Refused(500, f"the engine failed: {failed.error}", "engine_error")


class Stream(Response):
    """Server-sent events. A client that leaves, or takes no piece in time, frees its rows."""

    def __init__(self, answer: Answer, count: Callable[[str, int], None], path: str) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self.answer, self.count, self.path = answer, count, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, the client's or the answer's."""
        gone = asyncio.ensure_future(_until_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            complete = sending.done() and sending.exception() is None
        finally:
            gone.cancel()
            sending.cancel()
            with suppress(asyncio.CancelledError, TimeoutError, OSError):
                await sending
            self.answer.end()
        self.count(self.path, 200 if complete else _GONE)

    async def _send(self, send: Send) -> None:
        patience = self.answer.limits.patience

        async def put(data: bytes, more: bool = True) -> None:
            async with asyncio.timeout(patience):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in self.answer.pieces():
            await put(b"data: " + orjson.dumps(piece) + b"\n\n")
        await put(b"data: [DONE]\n\n", more=False)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _plain(http: HTTPRequest, error: Exception) -> Response:
    """An unknown path or method, in the same form as other errors."""
    assert isinstance(error, HTTPException)
    return _refusal(Refused(error.status_code, f"{http.method} {http.url.path}: {error.detail}"))


def _nothing() -> None:
    pass


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _refusal(refused: Refused) -> Response:
    response = _json(refused.body(), refused.status)
    if refused.status == 429:
        response.headers["retry-after"] = "1"
    if refused.status in (408, 413, 415):  # what is left of the body is not read
        response.headers["connection"] = "close"
    if refused.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def _policy(page: str) -> str:
    """Only the page's own script and style run, and they reach this server only."""

    def digest(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
        )

    return (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
