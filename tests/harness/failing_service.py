"""A real HTTP server that refuses everything and repeats what it was sent, as careless services do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FailingService:
    """A running one."""

    port: int
    paths: list[str] = field(default_factory=list)
    """What it was asked for."""


@contextmanager
def failing_service(status: int) -> Iterator[FailingService]:
    """Yield a server that answers every request with this status."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            paths.append(self.path)
            body = f"refused {self.path}; Authorization: {self.headers.get('authorization')}".encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield FailingService(server.server_port, paths)
    finally:
        server.shutdown()
        server.server_close()
