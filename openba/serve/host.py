"""The model that answers now, and its replacement by another without losing a request.

Owns the waking of requests from the engine's thread, and the hand-over: new requests go to the new model,
what has begun is ended by the old one, whose memory is free after that. Where models come
from is the caller's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from openba.errors import UserError
from openba.model.files import load_model
from openba.model.generate import start_tokens
from openba.redact import redact
from openba.serve.engine import Engine, EngineFailedError, Job
from openba.serve.limits import Limits
from openba.serve.metrics import Metrics
from openba.tokenizer.tokenizer import Tokenizer

_SECONDS_BETWEEN_CHECKS = 0.5


@dataclass(frozen=True)
class Served:
    """One loaded model."""

    name: str
    version: str
    engine: Engine
    tokenizer: Tokenizer
    loaded: int
    """Unix time in seconds."""


class Host:
    """Holds the present model. Belongs to one event loop, in which all but `load` is called."""

    def __init__(self, limits: Limits, metrics: Metrics, device: str = "cpu") -> None:
        self.limits, self.metrics, self.device = limits, metrics, device
        self.loop = asyncio.get_running_loop()
        self.present: Served | None = None
        self.trouble = ""
        """Why the last replacement failed; empty after one that worked."""

    def load(self, folder: Path, name: str, version: str) -> Served:
        """Load a model and start its engine; takes its time, in any thread.

        Raises:
            UserError: see `load_model`; or the model gives no finite logits.
        """
        model, tokenizer = load_model(folder)
        try:
            engine = Engine(
                model.to(torch.device(self.device)), start_tokens(tokenizer), tokenizer.eos, tokenizer.size,
                rows=self.limits.rows, queue=self.limits.queue, notify=self._notify,
            )  # fmt: skip
        except EngineFailedError as error:
            raise UserError(f"{folder}: {error}; serve another version") from None
        return Served(name, version, engine, tokenizer, int(time.time()))

    def state(self) -> str:
        """Return `ok`, or what is wrong with the engine that answers: `dead` or `stalled`."""
        return "dead" if self.present is None else self.present.engine.state(self.limits.answer)

    async def until_failure(self) -> str:
        """Wait until the engine that answers has ended or stalled; return which, with the reason."""
        while (state := self.state()) == "ok":
            await asyncio.sleep(_SECONDS_BETWEEN_CHECKS)
        failure = self.present.engine.failure if self.present is not None else ""
        return f"{state} ({failure})" if failure else state

    def replace(self, served: Served) -> None:
        """Let this model answer from now on."""
        old, self.present, self.trouble = self.present, served, ""
        if old is not None:
            old.engine.close()
            self.metrics.model.remove(old.name, old.version)
            self.metrics.reloads.labels("done").inc()
        self.metrics.model.labels(served.name, served.version).set(1)

    def failed(self, why: str) -> None:
        """Note that a replacement could not be loaded, or (empty) that there is no trouble any more."""
        why = redact(why)
        if why and why != self.trouble:
            self.metrics.reloads.labels("failed").inc()
        self.trouble = why

    def close(self) -> None:
        """End the engine when it has nothing to do any more."""
        if self.present is not None:
            self.present.engine.close()

    def _notify(self, jobs: Sequence[Job]) -> None:
        try:
            self.loop.call_soon_threadsafe(_wake, jobs)  # one call a step, whatever the number of rows
        except RuntimeError:  # the loop has ended, nobody waits
            for job in jobs:
                job.cancelled = True


def _wake(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.wake()
