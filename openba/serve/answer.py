"""One request being answered, whole or as a stream, and what happens when its client leaves.

Owns waiting: for the engine's tokens, for the client, for the time limit. Forms are `bodies.py`'s.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openba.serve.bodies import Body, Text
from openba.serve.engine import NOT_FINITE, Job
from openba.serve.host import Served
from openba.serve.limits import Disconnected, Limits
from openba.serve.metrics import Metrics
from openba.serve.protocol import Refused, Request

CLIENT_GONE = 499
"""Status in the metrics for a client that left before its answer (no client ever sees it)."""


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
        self.request, self.served, self.jobs = request, served, jobs
        self.limits, self.metrics, self.began = limits, metrics, began
        self.body = Body(request, served.name, served.version, uuid.uuid4().hex)
        self.texts = [Text(served.tokenizer, job, request.stops) for job in jobs]
        self.changed = asyncio.Event()
        for job in jobs:
            job.wake = self.changed.set

    async def complete(self, receive: Receive) -> dict[str, Any]:
        """Wait for the last token and return the body.

        Raises:
            Refused: it took too long, or a row failed.
            Disconnected: the client left; its rows are freed.
        """
        gone = asyncio.ensure_future(until_disconnected(receive))
        try:
            while not self._ended():
                woken = asyncio.ensure_future(self.changed.wait())
                remaining = self.limits.answer - (time.monotonic() - self.began)
                await asyncio.wait({gone, woken}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                self.changed.clear()
                if gone.done():
                    raise Disconnected
                if remaining <= 0:
                    raise self._too_late()
            self._check()
            return self.body.complete(self.texts)
        finally:
            gone.cancel()
            self.end()

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        """Yield its parts as they are written; the last of them may be an error's body."""
        ended = [False] * len(self.jobs)
        if self.body.chat:
            for index in range(len(self.jobs)):
                yield self.body.begin(index)
        deadline = asyncio.get_running_loop().time() + self.limits.answer - (time.monotonic() - self.began)
        try:
            while not all(ended):
                async with asyncio.timeout_at(deadline):
                    await self.changed.wait()
                self.changed.clear()
                for index, text in enumerate(self.texts):
                    if ended[index]:
                        continue
                    last = text.job.reason is not None  # read before the text, which may grow
                    is_first = not text.told
                    if piece := text.more(last):
                        if is_first:
                            self.metrics.first.observe(time.monotonic() - self.began)
                        yield self.body.piece(index, text, piece)
                    if last or text.stopped:
                        self._check()
                        ended[index] = text.job.cancelled = True
                        yield self.body.piece(index, text, "", text.reason)
            if self.request.stream_options and self.request.stream_options.include_usage:
                yield self.body.used(self.texts)
        except TimeoutError:
            yield self._too_late().body()
        except Refused as refused:
            yield refused.body()

    def end(self) -> None:
        """Release the rows and record metrics."""
        for job in self.jobs:
            job.cancelled = True
            job.wake = _nothing  # breaks the cycle of job and answer
        self.metrics.seconds.observe(time.monotonic() - self.began)
        self.metrics.read.inc(sum(len(job.source) for job in self.jobs))
        self.metrics.written.inc(sum(len(job.written) for job in self.jobs))

    def _ended(self) -> bool:
        for text in self.texts:
            if text.stops and text.job.reason is None:
                text.current()
                text.job.cancelled |= text.stopped
        return all(text.reason is not None for text in self.texts)

    def _check(self) -> None:
        """Raise the error of a failed row; what an exception says goes to the server's log only."""
        if failed := next((job for job in self.jobs if job.reason == "error"), None):
            reason = failed.error if failed.error.startswith(NOT_FINITE) else "the server's log says why"
            raise Refused(500, f"the answer failed: {reason}", "engine_error")

    def _too_late(self) -> Refused:
        return Refused(503, f"no answer in {self.limits.answer:g} s", "timeout")


class Stream(Response):
    """Server-sent events. A client that leaves, or takes no piece in time, frees its rows."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, the client's or the answer's."""
        gone = asyncio.ensure_future(until_disconnected(receive))
        sending = asyncio.ensure_future(self._send(send))
        complete = False
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            complete = sending.done() and sending.exception() is None
        finally:
            gone.cancel()
            sending.cancel()
            self.answer.end()
            if not complete:
                scope["openba.status"] = CLIENT_GONE
            with suppress(asyncio.CancelledError, TimeoutError, OSError):
                await sending

    async def _send(self, send: Send) -> None:
        patience = self.answer.limits.patience

        async def put(data: bytes, more: bool = True) -> None:
            async with asyncio.timeout(patience):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in self.answer.pieces():
            await put(b"data: " + orjson.dumps(piece) + b"\n\n")
        await put(b"data: [DONE]\n\n", more=False)


async def until_disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _nothing() -> None:
    pass
