"""What every engine that answers generations has: a queue, a thread, a state, and how it fails.

Owns the generations, their queue and the end of the thread: however it ends, each generation gets a finish
reason. How tokens are made is in `decoding_engine.py` (PyTorch) and `ctranslate2_engine.py`. Handles token
ids only: text and OpenAI's form are in `openai_requests.py` and `openai_responses.py`.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from openba.errors import UserError, one_line
from openba.model.adapter_bank import NO_ADAPTER
from openba.model.decoding import check_sources
from openba.model.generate import start_tokens
from openba.recipes.architecture import Architecture
from openba.serve.sampling import GREEDY, Sampling, TokenLogprobs
from openba.tokenizer.tokenizer import Tokenizer

MAX_ENCODED_TOKENS = 4096
"""Source tokens encoded between two steps; active rows wait for this encoding."""
NOT_FINITE = "the model's logits are not finite"


class QueueFullError(Exception):
    """The queue has no room for the request; the client may try again."""


class EngineFailedError(Exception):
    """The engine cannot answer any more; its process has to be restarted."""


@dataclass(eq=False)
class Generation:
    """One prompt and the tokens generated for it; its lists are appended to in the engine's thread."""

    source_ids: list[int]
    """Encoder ids with the instruction's wrapping."""
    max_new_tokens: int
    sampling: Sampling = GREEDY
    adapter: int = NO_ADAPTER
    """Number of the adapter that answers."""
    notify_each_step: bool = False
    """Notify after every step, not only on completion."""
    wake: Callable[[], None] = lambda: None
    """Called through the engine's `notify`."""
    output_ids: list[int] = field(default_factory=list)
    """Generated tokens without the closing `</s>`."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One per output token, if `sampling.top_logprobs` is set."""
    finish_reason: str | None = None
    """`stop`, `length`, `cancelled` or `error`; None while it runs."""
    error: str = ""
    is_cancelled: bool = False
    """Set by the client's side; the row is freed before the next step."""
    random_generator: torch.Generator | None = None


@dataclass(frozen=True)
class EngineSettings:
    """What every engine needs beside its model."""

    tokenizer: Tokenizer
    max_rows: int
    """Answers decoded at the same time."""
    max_queued: int
    """Generations that may wait for a row."""
    notify: Callable[[list[Generation]], None]
    """Called in the engine's thread after a step with the generations to wake."""


class Engine(ABC):
    """A queue of generations and the thread that answers them."""

    def __init__(self, architecture: Architecture, settings: EngineSettings) -> None:
        """Run the self-test and start the thread.

        Args:
            architecture: of the model.
            settings: of the engine.

        Raises:
            EngineFailedError: the self-test fails.
        """
        self.architecture = architecture
        self.start_ids = start_tokens(settings.tokenizer)
        """The decoder's first tokens."""
        self.eos_id = settings.tokenizer.eos
        self.vocabulary_size = settings.tokenizer.size
        """Logits of the embedding's padding rows, above it, are ignored."""
        self.max_rows = settings.max_rows
        self.max_queued = settings.max_queued
        self.notify = settings.notify
        self.active: list[Generation] = []
        """Generations that are decoded now."""
        self.queue: deque[Generation] = deque()
        self.steps = 0
        self.tokens = 0
        self.is_closing = False
        self.failure = ""
        """Why the thread ended before it was closed; empty if it did not."""
        self._admitted: list[Generation] = []
        """Taken from the queue in the current step; some may have no row yet."""
        self._step_began: float | None = None
        self._next_log_time = 0.0
        self._queue_changed = threading.Condition()
        self._self_test("the model does not answer")
        self.thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self.thread.start()

    @abstractmethod
    def _self_test(self, reason: str) -> None:
        """Decode a source of one token, to tell a faulty request from a faulty model or device.

        Args:
            reason: the error after which the test is run.

        Raises:
            EngineFailedError: the test fails, so the fault is not a request's.
        """

    @abstractmethod
    def _decode_admitted(self, changed: dict[Generation, None]) -> None:
        """Begin what was admitted and decode; `changed` gets the generations to wake afterwards."""

    @abstractmethod
    def _prepare(self, generation: Generation) -> None:
        """Make a checked generation ready for the queue, in the caller's thread.

        Raises:
            UserError: it asks for what this engine cannot do.
        """

    def _may_join(self, generation: Generation, others: list[Generation]) -> bool:
        """Return whether a generation may be taken from the queue together with others."""
        return True

    @property
    def max_new_tokens(self) -> int:
        """Decoder positions that are left for an answer."""
        return self.architecture.decoder_max_seq_length - len(self.start_ids)

    def state(self, step_timeout: float) -> str:
        """Return `ok`, `dead` (the thread has ended) or `stalled` (a step exceeds `step_timeout` seconds)."""
        if not self.thread.is_alive():
            return "dead"
        step_began = self._step_began
        is_stalled = step_began is not None and time.monotonic() - step_began > step_timeout
        return "stalled" if is_stalled else "ok"

    def submit(self, generations: Sequence[Generation]) -> None:
        """Append generations to the queue: all or none of them.

        Raises:
            QueueFullError: too many are queued already, or the engine is closing.
            EngineFailedError: the engine has ended.
            UserError: a source that the model cannot read, a limit beyond its positions, a bias for no token;
                see `_prepare`.
        """
        # Checked in the caller's thread: a wrong parameter must not raise in the engine's thread, where it
        # would fail the rows of other requests.
        check_sources(self.architecture, [generation.source_ids for generation in generations])
        for generation in generations:
            if not 1 <= generation.max_new_tokens <= self.max_new_tokens:
                raise UserError(
                    f"max_tokens: {generation.max_new_tokens} is not between 1 and {self.max_new_tokens}"
                )
            for token_id in generation.sampling.logit_bias:
                if not 0 <= token_id < self.vocabulary_size:
                    raise UserError(f"logit_bias: {token_id} is no token id below {self.vocabulary_size}")
            self._prepare(generation)
        with self._queue_changed:
            if self.failure:
                raise EngineFailedError(self.failure)
            if len(self.queue) + len(generations) > self.max_queued:
                # Cancelled generations stay queued until a row is free; drop them before refusing others.
                self.queue = deque(queued for queued in self.queue if not queued.is_cancelled)
            if self.is_closing or len(self.queue) + len(generations) > self.max_queued:
                raise QueueFullError
            self.queue += generations
            self._queue_changed.notify()

    def close(self) -> None:
        """Refuse new generations; the thread ends when the queued ones are finished."""
        with self._queue_changed:
            self.is_closing = True
            self._queue_changed.notify()

    def _run(self) -> None:
        """Decode until closed; however it ends, every generation gets a finish reason."""
        try:
            self._decode_loop()
        except BaseException as error:
            failure = one_line(error)
            print(f"openba: the engine has ended: {failure}", file=sys.stderr, flush=True)
            with self._queue_changed:
                self.failure = failure
                self.is_closing = True
                # An admitted generation may be active already: a dict drops duplicates and keeps order.
                submitted = dict.fromkeys((*self.active, *self._admitted, *self.queue))
                self.active = []
                self.queue = deque()
            unfinished = [generation for generation in submitted if generation.finish_reason is None]
            for generation in unfinished:
                generation.error = "the engine has ended"
                # Set last: the event loop reads `error` once there is a reason.
                generation.finish_reason = "error"
            self.notify(unfinished)

    def _decode_loop(self) -> None:
        while True:
            with self._queue_changed:
                # Waiting for requests is no step: `state` must not report an idle engine as stalled.
                self._step_began = None
                while not (self.queue or self.active or self.is_closing):
                    self._queue_changed.wait()
                if not (self.queue or self.active):
                    return
                self._admitted = self._take_from_queue()
                self._step_began = time.monotonic()
            changed: dict[Generation, None] = {}  # an ordered set
            try:
                self._decode_admitted(changed)
            finally:
                # Also after an exception: generations that finished in this step have to be reported.
                self.notify(list(changed))

    def _take_from_queue(self) -> list[Generation]:
        """Take at least one generation, up to the number of free rows and the token limit."""
        free_rows = self.max_rows - len(self.active)
        source_tokens = 0
        taken: list[Generation] = []
        while self.queue and len(taken) < free_rows:
            source_tokens += len(self.queue[0].source_ids)
            # At least one is taken, or a source beyond the limit would wait for ever.
            if taken and (source_tokens > MAX_ENCODED_TOKENS or not self._may_join(self.queue[0], taken)):
                break
            taken.append(self.queue.popleft())
        return taken

    def _fail(self, generation: Generation, error: str, changed: dict[Generation, None]) -> None:
        # At most one line per second: clients must not be able to fill the log.
        if time.monotonic() > self._next_log_time:
            self._next_log_time = time.monotonic() + 1.0
            print(f"openba: an answer failed: {error}", file=sys.stderr, flush=True)
        generation.error = error
        self._finish(generation, "error", changed)

    @staticmethod
    def _finish(generation: Generation, finish_reason: str, changed: dict[Generation, None]) -> None:
        generation.finish_reason = finish_reason
        changed[generation] = None
