"""What a client may do to the server: size and pace of a body, who may ask, who is waited for.

Owns the reading of bodies, the key, and connections that do not go on. Every refusal is a 4xx in OpenAI's
form; a client that does not read its answer loses the connection.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from openba.serve.protocol import Refused

Receive = Callable[[], Awaitable[Any]]
_DISCARDED = 64 * 2**20
"""Bytes of a body that is too large are read on up to here, so that its sender gets to read the refusal."""


@dataclass(frozen=True)
class Limits:
    """What protects the server; each is a setting of `openba serve`."""

    rows: int = 32
    """Answers written at once."""
    queue: int = 256
    """Answers that may wait for a row; more get 429."""
    body: int = 2**20
    """Bytes of a request's body; more get 413."""
    prompts: int = 64
    """Prompts in one request, and answers to them."""
    patience: float = 10.0
    """Seconds for a request to arrive, and for a client to take a piece of its answer."""
    answer: float = 300.0
    """Seconds for an answer, waiting included."""


class Disconnected(Exception):
    """The client is gone."""


async def read_body(headers: Mapping[str, str], receive: Receive, limits: Limits) -> bytes:
    """The body of a JSON request.

    Raises:
        Refused: another content type, too large, or too slow.
        Disconnected: the client left.
    """
    parts: list[bytes] = []
    size, declared = 0, headers.get("content-length", "")
    is_number = declared.isascii() and declared.isdecimal()
    most = min(_DISCARDED, int(declared)) if is_number else _DISCARDED
    try:
        async with asyncio.timeout(limits.patience):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                size += len(message.get("body", b""))
                if size <= limits.body:
                    parts.append(message.get("body", b""))
                if not message.get("more_body") or size > most:
                    break
    except TimeoutError:
        raise Refused(408, f"the body did not arrive in {limits.patience:g} s") from None
    if size > limits.body:
        raise Refused(413, f"the body is larger than {limits.body} bytes", "body_too_large")
    # A web page elsewhere may send plain text to a server on loopback without asking first, JSON it may not.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "content-type: only application/json is read")
    return b"".join(parts)


def check_key(headers: Mapping[str, str], key: str | None) -> None:
    """Let nobody in without the key, if there is one.

    Raises:
        Refused: 401.
    """
    if key is None:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise Refused(401, "wrong or no API key: send it as `Authorization: Bearer KEY`", "invalid_api_key")


class Protocol(H11Protocol):
    """uvicorn's HTTP with an end to the waiting for a request's first part, which it has no limit for."""

    patience = Limits.patience

    def connection_made(self, transport: Any) -> None:
        """Wait `patience` seconds for the headers of the first request."""
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As above for each further request of the connection, from its first byte."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _watch(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.patience, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            body = json.dumps(Refused(408, "the request did not arrive in time").body()).encode()
            head = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            self.transport.close()
