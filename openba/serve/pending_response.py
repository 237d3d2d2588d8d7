"""Response to one request, complete or streamed, and its cancellation when the client disconnects.

Owns waiting: for tokens of the engine, for the client, and for the time limit. Bodies are built in
`openai_responses.py`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openba.serve.engine import NOT_FINITE, Generation
from openba.serve.limits import ClientDisconnectedError, Limits
from openba.serve.model_host import LoadedModel
from openba.serve.openai_requests import JSONObject, OpenAIRequest, RequestError
from openba.serve.openai_responses import GeneratedText, ResponseBuilder
from openba.serve.server_metrics import ServerMetrics

CLIENT_CLOSED_REQUEST = 499
"""Status in the metrics, as nginx has it, for a client that disconnected; no client receives it."""


class PendingResponse:
    """Response to one request while its answers are being generated."""

    def __init__(
        self,
        request: OpenAIRequest,
        model: LoadedModel,
        generations: list[Generation],
        limits: Limits,
        metrics: ServerMetrics,
        received_at: float,
    ) -> None:
        """Args: `received_at` is when the request came, by the monotonic clock; the rest by their types."""
        self.request = request
        self.generations = generations
        self.limits = limits
        self.metrics = metrics
        self.received_at = received_at
        self.builder = ResponseBuilder(request, request.model or model.name, model.version, uuid.uuid4().hex)
        self.texts = [
            GeneratedText(model.tokenizer, generation, request.stop_strings) for generation in generations
        ]
        self.tokens_arrived = asyncio.Event()
        for generation in generations:
            generation.wake = self.tokens_arrived.set

    async def complete(self, receive: Receive) -> JSONObject:
        """Wait for the last token and return the body.

        Raises:
            RequestError: the time limit passed, or a row failed.
            ClientDisconnectedError: the client closed the connection; its rows are freed.
        """
        disconnect = asyncio.ensure_future(until_disconnected(receive))
        try:
            while not self._is_finished():
                wake_up = asyncio.ensure_future(self.tokens_arrived.wait())
                remaining_seconds = self.limits.answer_timeout - self._elapsed_seconds()
                await asyncio.wait(
                    {disconnect, wake_up}, timeout=remaining_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                wake_up.cancel()
                self.tokens_arrived.clear()
                if disconnect.done():
                    raise ClientDisconnectedError
                if remaining_seconds <= 0:
                    raise self._timeout_error()
            self._raise_failure()
            return self.builder.complete(self.texts)
        finally:
            disconnect.cancel()
            self.close()

    async def chunks(self) -> AsyncIterator[JSONObject]:
        """Yield the chunks of a stream as tokens arrive; the last one may be an error's body."""
        is_ended = [False] * len(self.generations)
        if self.builder.is_chat:
            for index in range(len(self.generations)):
                yield self.builder.role_chunk(index)
        # The loop's clock, by which asyncio's timeouts are set, need not be the monotonic clock.
        loop_time = asyncio.get_running_loop().time()
        deadline = loop_time + self.limits.answer_timeout - self._elapsed_seconds()
        try:
            while not all(is_ended):
                async with asyncio.timeout_at(deadline):
                    await self.tokens_arrived.wait()
                self.tokens_arrived.clear()
                for index, text in enumerate(self.texts):
                    if is_ended[index]:
                        continue
                    # Read before the text: tokens that arrive in between then belong to the next chunk.
                    is_last = text.generation.finish_reason is not None
                    is_first = not text.sent_characters
                    if new_text := text.take_new(is_last):
                        if is_first:
                            self.metrics.first_token_seconds.observe(self._elapsed_seconds())
                        yield self.builder.text_chunk(index, text, new_text)
                    if is_last or text.is_stopped:
                        self._raise_failure()
                        is_ended[index] = True
                        text.generation.is_cancelled = True
                        yield self.builder.text_chunk(index, text, "", text.finish_reason)
            if self.request.stream_options and self.request.stream_options.include_usage:
                yield self.builder.usage_chunk(self.texts)
        except TimeoutError:
            yield self._timeout_error().body()
        except RequestError as error:
            yield error.body()

    def close(self) -> None:
        """Free the rows and record metrics."""
        for generation in self.generations:
            generation.is_cancelled = True
            generation.wake = _ignore_wake_up  # breaks the reference cycle of generation and response
        prompt_tokens = sum(len(generation.source_ids) for generation in self.generations)
        completion_tokens = sum(len(generation.output_ids) for generation in self.generations)
        self.metrics.request_seconds.observe(self._elapsed_seconds())
        self.metrics.prompt_tokens.inc(prompt_tokens)
        self.metrics.completion_tokens.inc(completion_tokens)

    def _elapsed_seconds(self) -> float:
        return time.monotonic() - self.received_at

    def _is_finished(self) -> bool:
        """Return whether all answers are complete; cancels rows whose text has reached a stop string."""
        for text in self.texts:
            if text.stop_strings and text.generation.finish_reason is None:
                text.current()
                text.generation.is_cancelled |= text.is_stopped
        return all(text.finish_reason is not None for text in self.texts)

    def _raise_failure(self) -> None:
        """Raise the error of the first failed row."""
        for generation in self.generations:
            if generation.finish_reason == "error":
                # The text of an exception may hold paths or addresses and goes to the server's log only.
                is_public = generation.error.startswith(NOT_FINITE)
                reason = generation.error if is_public else "the server's log says why"
                raise RequestError(500, f"the answer failed: {reason}", "engine_error")

    def _timeout_error(self) -> RequestError:
        return RequestError(503, f"no answer in {self.limits.answer_timeout:g} s", "timeout")


class EventStream(Response):
    """Server-sent events. Frees the rows of a client that disconnects or does not read in time."""

    def __init__(self, pending: PendingResponse) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        # Starlette derives it from the body, which is empty here.
        del self.headers["content-length"]
        self.pending = pending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send chunks until the answer ends or the client disconnects."""
        disconnect = asyncio.ensure_future(until_disconnected(receive))
        sending = asyncio.ensure_future(self._send_chunks(send))
        is_complete = False
        try:
            await asyncio.wait({disconnect, sending}, return_when=asyncio.FIRST_COMPLETED)
            is_complete = sending.done() and sending.exception() is None
        finally:
            disconnect.cancel()
            sending.cancel()
            self.pending.close()
            if not is_complete:
                scope["openba.status"] = CLIENT_CLOSED_REQUEST
            with suppress(asyncio.CancelledError, TimeoutError, OSError):
                await sending

    async def _send_chunks(self, send: Send) -> None:
        client_timeout = self.pending.limits.client_timeout

        async def send_body(payload: bytes, more_body: bool = True) -> None:
            # `send` waits while the client does not read: the write buffer is full.
            async with asyncio.timeout(client_timeout):
                await send({"type": "http.response.body", "body": payload, "more_body": more_body})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in self.pending.chunks():
            await send_body(b"data: " + orjson.dumps(chunk) + b"\n\n")
        await send_body(b"data: [DONE]\n\n", more_body=False)


async def until_disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _ignore_wake_up() -> None:
    pass
