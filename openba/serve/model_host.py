"""Holder of the model that serves requests, and its replacement without losing a request.

Owns the hand-over: new requests go to the new model, running ones are finished by the old one, whose memory
is freed afterwards. Also passes wake-ups from the engine's thread to the event loop. The caller decides where
models come from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from openba.errors import UserError
from openba.model.adapter_bank import AdapterBank
from openba.model.loading import load_model
from openba.redact import redact
from openba.serve.decoding_engine import DecodingEngine
from openba.serve.engine import Engine, EngineFailedError, EngineSettings, Generation
from openba.serve.limits import Limits
from openba.serve.server_metrics import ServerMetrics
from openba.tokenizer.tokenizer import Tokenizer

_STATE_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class EngineChoice:
    """Which engine decodes."""

    name: Literal["openba", "ctranslate2"] = "openba"
    quantization: str = "float32"
    """Of CTranslate2's weights, as `openba export` takes it."""


DEFAULT_ENGINE = EngineChoice()


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and its running engine."""

    name: str
    version: str
    engine: Engine
    tokenizer: Tokenizer
    loaded_at: int
    """Unix time in seconds."""
    adapters: Mapping[str, int]
    """Names that answer beside the model's own -> number of the adapter."""

    @property
    def names(self) -> list[str]:
        """Names by which a request may ask: the base's first."""
        return [self.name, *self.adapters]


class ModelHost:
    """Holder of the current model. All methods but `load` must be called in its event loop."""

    def __init__(
        self,
        limits: Limits,
        metrics: ServerMetrics,
        device: str = "cpu",
        engine_choice: EngineChoice = DEFAULT_ENGINE,
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self.device = device
        self.engine_choice = engine_choice
        # Kept for the engine's thread, which has no running loop of its own.
        self.event_loop = asyncio.get_running_loop()
        self.current: LoadedModel | None = None
        self.reload_error = ""
        """Why the last replacement failed; empty after a successful one."""

    def load(
        self, folder: Path, name: str, version: str, adapter_folders: Mapping[str, Path] | None = None
    ) -> LoadedModel:
        """Load a model and start its engine; blocking, may be called in any thread.

        Args:
            folder: of the model.
            name: by which requests ask for it.
            version: for people.
            adapter_folders: name -> folder of an adapter that is served over it.

        Raises:
            UserError: see `load_model`; or the model gives no finite logits.
        """
        try:
            if self.engine_choice.name == "ctranslate2":
                return self._load_ctranslate2(folder, name, version)
            return self._load_openba(folder, name, version, adapter_folders or {})
        except EngineFailedError as error:
            raise UserError(f"{folder}: {error}; serve another version") from None

    def _load_openba(
        self, folder: Path, name: str, version: str, adapter_folders: Mapping[str, Path]
    ) -> LoadedModel:
        model, tokenizer = load_model(folder)
        model = model.to(torch.device(self.device))
        bank = AdapterBank(model, folder, adapter_folders) if adapter_folders else None
        engine = DecodingEngine(model, self._settings(tokenizer), bank)
        numbers = {} if bank is None else {adapter: number for number, adapter in enumerate(bank.names)}
        return LoadedModel(name, version, engine, tokenizer, int(time.time()), numbers)

    def _load_ctranslate2(self, folder: Path, name: str, version: str) -> LoadedModel:
        try:  # here: an optional dependency
            from openba.serve.ctranslate2_engine import CTranslate2Engine
        except ModuleNotFoundError:
            raise UserError(
                "--engine ctranslate2: CTranslate2 is not installed; run pip install 'openba[export]'"
            ) from None
        # The engine reads the weights itself, to convert them; they are not kept in PyTorch's form.
        tokenizer = Tokenizer.load(folder)
        engine = CTranslate2Engine(
            folder,
            self._settings(tokenizer),
            quantization=self.engine_choice.quantization,
            device=self.device,
        )
        return LoadedModel(name, version, engine, tokenizer, int(time.time()), {})

    def _settings(self, tokenizer: Tokenizer) -> EngineSettings:
        return EngineSettings(tokenizer, self.limits.max_rows, self.limits.max_queued, self._notify)

    def state(self) -> str:
        """Return the state of the current engine: `ok`, `dead` or `stalled`."""
        return "dead" if self.current is None else self.current.engine.state(self.limits.answer_timeout)

    async def until_failure(self) -> str:
        """Wait until the current engine is dead or stalled; returns that state with its reason."""
        while (state := self.state()) == "ok":
            await asyncio.sleep(_STATE_POLL_SECONDS)
        failure = self.current.engine.failure if self.current is not None else ""
        return f"{state} ({failure})" if failure else state

    def replace(self, new_model: LoadedModel) -> None:
        """Send new requests to this model; the previous engine finishes its own and ends."""
        previous = self.current
        self.current = new_model
        self.reload_error = ""
        if previous is not None:
            # It finishes its queue; running requests hold the last reference to its model.
            previous.engine.close()
            self.metrics.model.remove(previous.name, previous.version)
            self.metrics.reloads.labels("done").inc()
        self.metrics.model.labels(new_model.name, new_model.version).set(1)

    def set_reload_error(self, reason: str) -> None:
        """Record why a replacement could not be loaded; an empty reason clears the error."""
        reason = redact(reason)
        # A failure that persists is retried every few seconds and counts once.
        if reason and reason != self.reload_error:
            self.metrics.reloads.labels("failed").inc()
        self.reload_error = reason

    def close(self) -> None:
        """End the engine once its queue is empty."""
        if self.current is not None:
            self.current.engine.close()

    def _notify(self, generations: Sequence[Generation]) -> None:
        """Wake the waiting requests; called in the engine's thread."""
        try:
            # One call per step for all rows: each call wakes the event loop through a socket.
            self.event_loop.call_soon_threadsafe(_wake_all, generations)
        except RuntimeError:  # the event loop is closed, so no request waits any more
            for generation in generations:
                generation.is_cancelled = True


def _wake_all(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.wake()
