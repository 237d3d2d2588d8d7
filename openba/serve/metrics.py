"""What `/metrics` shows: counters and gauges of one server, in Prometheus' text form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """One set per application; the default registry belongs to whoever embeds it."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "openba_serve_requests",
            "Requests answered, by path and status",
            ["path", "status"],
            registry=registry,
        )
        self.read = Counter("openba_serve_prompt_tokens", "Tokens of prompts", registry=registry)
        self.written = Counter("openba_serve_completion_tokens", "Tokens written", registry=registry)
        self.seconds = Histogram(
            "openba_serve_seconds",
            "From a request to the end of its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "openba_serve_first_token_seconds", "From a streamed request to its first text", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.steps = Gauge("openba_serve_steps", "Decoder steps of the present model", registry=registry)
        self.rows = Gauge("openba_serve_rows", "Answers being written", registry=registry)
        self.waiting = Gauge("openba_serve_waiting", "Answers waiting for a row", registry=registry)
        self.model = Gauge(
            "openba_serve_model", "1 for the model that answers", ["name", "version"], registry=registry
        )
        self.reloads = Counter(
            "openba_serve_reloads", "Changes of model, by result", ["result"], registry=registry
        )

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)
