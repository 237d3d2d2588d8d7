"""Limits on clients: size and transfer time of a body, API key, idle connections.

Owns the reading of request bodies, the check of the API key, and the closing of stalled connections. Every
refusal is a 4xx in OpenAI's error form; a client that does not read its response loses the connection.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from openba.serve.openai_requests import RequestError

_MAX_DRAINED_BYTES = 64 * 2**20
"""Bytes of an oversized body that are read and dropped, so that its sender can read the 413."""


@dataclass(frozen=True)
class Limits:
    """Limits that protect the server; each is an option of `openba serve`."""

    max_rows: int = 32
    """Answers decoded at the same time."""
    max_queued: int = 256
    """Answers that may wait for a row; beyond it requests get 429."""
    max_body_bytes: int = 2**20
    """Size of a request's body; a larger one gets 413."""
    max_prompts: int = 64
    """Prompts in one request, and answers to them."""
    client_timeout: float = 10.0
    """Seconds for a request to arrive, and for a client to take each part of a stream."""
    answer_timeout: float = 300.0
    """Seconds for an answer, time in the queue included."""


class ClientDisconnectedError(Exception):
    """The client closed the connection."""


async def read_body(headers: Mapping[str, str], receive: Receive, limits: Limits) -> bytes:
    """Return the body of a JSON request.

    Raises:
        RequestError: wrong content type, too large, or too slow.
        ClientDisconnectedError: the client closed the connection.
    """
    chunks: list[bytes] = []
    total_bytes = 0
    content_length = headers.get("content-length", "")
    max_read = _MAX_DRAINED_BYTES
    if content_length.isascii() and content_length.isdecimal():
        max_read = min(max_read, int(content_length))
    try:
        async with asyncio.timeout(limits.client_timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnectedError
                chunk = message.get("body", b"")
                total_bytes += len(chunk)
                if total_bytes <= limits.max_body_bytes:
                    chunks.append(chunk)
                if not message.get("more_body") or total_bytes > max_read:
                    break
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive in {limits.client_timeout:g} s") from None
    if total_bytes > limits.max_body_bytes:
        raise RequestError(413, f"the body is larger than {limits.max_body_bytes} bytes", "body_too_large")
    # CSRF: a web page of another origin may post text/plain to a server on loopback without a preflight
    # request, but not JSON.
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(415, "content-type: only application/json is read")
    return b"".join(chunks)


def check_key(headers: Mapping[str, str], api_key: str | None) -> None:
    """Check the bearer token if the server has an API key.

    Raises:
        RequestError: 401.
    """
    if api_key is None:
        return
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    # Constant-time comparison: response times must not reveal how many characters match.
    is_valid = hmac.compare_digest(credentials.strip().encode(), api_key.encode())
    if scheme.lower() != "bearer" or not is_valid:
        raise RequestError(
            401, "wrong or no API key: send it as `Authorization: Bearer KEY`", "invalid_api_key"
        )


class HeaderTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a time limit for a request's headers, which uvicorn does not have."""

    client_timeout = Limits.client_timeout

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait `client_timeout` seconds for the headers of the first request."""
        super().connection_made(transport)
        self._header_timer: asyncio.TimerHandle | None = None
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        """Start the timer at the first byte of a later request on the same connection."""
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _update_timer(self) -> None:
        if not self._is_between_requests():
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.client_timeout, self._close_stalled)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_stalled(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing() and self._is_between_requests():
            error = RequestError(408, "the request did not arrive in time")
            body = json.dumps(error.body()).encode()
            head = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
            # Written by hand: without a complete request there is no cycle that uvicorn could answer in.
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            self.transport.close()
