"""Prometheus counters and gauges of one server, served at `/metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Log-spaced up to the default time limit of an answer, 300 s.
_BUCKETS_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ServerMetrics:
    """Metrics of one application.

    Each application has its own registry, since the default one belongs to the process that embeds it.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "openba_serve_requests",
            "Requests answered, by path and status",
            ["path", "status"],
            registry=registry,
        )
        self.prompt_tokens = Counter("openba_serve_prompt_tokens", "Tokens of prompts", registry=registry)
        self.completion_tokens = Counter(
            "openba_serve_completion_tokens", "Tokens written", registry=registry
        )
        self.request_seconds = Histogram(
            "openba_serve_seconds",
            "From a request to the end of its answer",
            buckets=_BUCKETS_SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "openba_serve_first_token_seconds",
            "From a streamed request to its first text",
            buckets=_BUCKETS_SECONDS,
            registry=registry,
        )
        self.decoder_steps = Gauge(
            "openba_serve_steps", "Decoder steps of the present model", registry=registry
        )
        self.active_rows = Gauge("openba_serve_rows", "Answers being written", registry=registry)
        self.queued_generations = Gauge(
            "openba_serve_waiting", "Answers waiting for a row", registry=registry
        )
        self.model = Gauge(
            "openba_serve_model", "1 for the model that answers", ["name", "version"], registry=registry
        )
        self.reloads = Counter(
            "openba_serve_reloads", "Changes of model, by result", ["result"], registry=registry
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
