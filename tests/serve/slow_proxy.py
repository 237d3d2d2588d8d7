"""A TCP proxy before a real server that delays the events of a stream, or cuts it after some."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Literal

_EVENT_END = b"\n\n\r\n"
"""End of an event and of its chunk in HTTP's chunked form."""
_STREAM_END = b"0\r\n\r\n"
"""Last chunk of an answer."""


class SlowProxy:
    """Forwards to one server; its settings hold for what is forwarded from then on."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.target = host, int(port)
        self.delay = 0.0
        """Seconds before each event of a stream."""
        self.cut_after: int | None = None
        """Events of a stream after which its connection ends."""
        self.cut: Literal["broken", "polite"] = "broken"
        """`polite`: the answer ends as a whole one does, but without the last event."""
        self.listening = socket.create_server((host, 0))
        self.url = f"http://{host}:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self.listening.accept()[0]
                server = socket.create_connection(self.target)
                threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
                threading.Thread(target=self._stream, args=(server, client), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def _stream(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            self._forward(server, client)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _forward(self, server: socket.socket, client: socket.socket) -> None:
        """Forward answers; those that are streams event by event."""
        events, pending = 0, b""
        streaming = False
        while data := server.recv(65536):
            if not streaming and b"text/event-stream" in data:
                head, _, data = data.partition(b"\r\n\r\n")
                client.sendall(head + b"\r\n\r\n")
                streaming, events, pending = True, 0, b""
            if not streaming:
                client.sendall(data)
                continue
            pending += data
            while (end := pending.find(_EVENT_END)) >= 0:
                event, pending = pending[: end + len(_EVENT_END)], pending[end + len(_EVENT_END) :]
                time.sleep(self.delay)
                if self.cut_after is not None and events >= self.cut_after:
                    client.sendall(_STREAM_END if self.cut == "polite" else event[:20])
                    return
                client.sendall(event)
                events += 1
            if pending == _STREAM_END:
                client.sendall(pending)
                streaming = False
