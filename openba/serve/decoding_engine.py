"""Continuous batching: one thread decodes all requests, adding and removing rows between steps.

Owns the queue, the thread and its failures. A row whose logits are not finite fails alone. After an error
that cannot be attributed to a row, the engine runs a self-test on a source of one token; if that fails too,
the thread ends, all requests get an error, and `state` reports it. Handles token ids only: text and OpenAI's
form are in `openai_requests.py` and `openai_responses.py`, the choice of tokens in `sampling.py`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openba.errors import UserError, one_line
from openba.model.adapter_bank import NO_ADAPTER, AdapterBank
from openba.model.decoding import check_sources
from openba.model.seq2seq import Seq2Seq
from openba.serve.row_cache import RowCache
from openba.serve.sampling import GREEDY, Sampling, TokenLogprobs, choose_tokens, token_logprobs

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


class DecodingEngine:
    """Continuous batching over one model."""

    def __init__(
        self,
        model: Seq2Seq,
        *,
        start_ids: Sequence[int],
        eos_id: int,
        vocabulary_size: int,
        max_rows: int,
        max_queued: int,
        notify: Callable[[list[Generation]], None],
        bank: AdapterBank | None = None,
    ) -> None:
        """Run the self-test and start the thread.

        Args:
            model: in evaluation mode.
            start_ids: the decoder's first tokens.
            eos_id: the token that ends an answer.
            vocabulary_size: ids of the tokenizer; logits of the embedding's padding rows are ignored.
            max_rows: answers decoded at the same time.
            max_queued: generations that may wait for a row.
            notify: called in the engine's thread after a step with the generations to wake.
            bank: adapters in the model's layers; None: there are none.

        Raises:
            EngineFailedError: the model gives no finite logits.
        """
        self.model = model
        self.eos_id = eos_id
        self.vocabulary_size = vocabulary_size
        self.max_queued = max_queued
        self.notify = notify
        self.row_cache = RowCache(model, max_rows, start_ids, bank)
        self.active: list[Generation] = []
        """Generation of each row of the cache."""
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

    @property
    def max_new_tokens(self) -> int:
        """Decoder positions that are left for an answer."""
        return self.model.architecture.decoder_max_seq_length - len(self.row_cache.start_ids)

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
            UserError: a source that the model cannot read, a limit beyond its positions, a bias for no token.
        """
        # Checked in the caller's thread: a wrong parameter must not raise in the engine's thread, where it
        # would fail the rows of other requests.
        check_sources(self.model, [generation.source_ids for generation in generations])
        for generation in generations:
            if not 1 <= generation.max_new_tokens <= self.max_new_tokens:
                raise UserError(
                    f"max_tokens: {generation.max_new_tokens} is not between 1 and {self.max_new_tokens}"
                )
            for token_id in generation.sampling.logit_bias:
                if not 0 <= token_id < self.vocabulary_size:
                    raise UserError(f"logit_bias: {token_id} is no token id below {self.vocabulary_size}")
            device = self.row_cache.self_attention.device
            generation.random_generator = generation.sampling.random_generator(device)
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
                self._add_rows(list(self._admitted), changed)
                self._decode_step(changed)
            finally:
                # Also after an exception: generations that finished in this step have to be reported.
                self.notify(list(changed))

    def _take_from_queue(self) -> list[Generation]:
        """Take at least one generation, up to the number of free rows and the token limit."""
        free_rows = self.row_cache.max_rows - len(self.active)
        source_tokens = 0
        taken: list[Generation] = []
        while self.queue and len(taken) < free_rows:
            source_tokens += len(self.queue[0].source_ids)
            # At least one is taken, or a source beyond the limit would wait for ever.
            if taken and source_tokens > MAX_ENCODED_TOKENS:
                break
            taken.append(self.queue.popleft())
        return taken

    def _add_rows(self, admitted: list[Generation], changed: dict[Generation, None]) -> None:
        """Encode the sources in one batch; if that fails, one by one, so that only the faulty one fails."""
        for generation in [generation for generation in admitted if generation.is_cancelled]:
            admitted.remove(generation)
            self._finish(generation, "cancelled", changed)
        if not admitted:
            return
        try:
            logits = self.row_cache.add_rows(
                [generation.source_ids for generation in admitted],
                [generation.adapter for generation in admitted],
            )
        except Exception as error:
            if len(admitted) == 1:
                self._fail(admitted[0], one_line(error), changed)
                self._self_test(one_line(error))
                return
            for generation in admitted:
                self._add_rows([generation], changed)
            return
        self.active += admitted
        self._append_tokens(range(len(self.active) - len(admitted), len(self.active)), logits, changed)

    def _decode_step(self, changed: dict[Generation, None]) -> None:
        """Free cancelled rows and decode one token for each other row."""
        # From the last row down: freeing a row moves the last one, which has been looked at, into it.
        for row in reversed(range(len(self.active))):
            if self.active[row].is_cancelled:
                self._finish(self._remove_row(row), "cancelled", changed)
        if not self.active:
            return
        try:
            logits = self.row_cache.decode_step([generation.output_ids[-1] for generation in self.active])
        except Exception as error:  # such as a device out of memory
            reason = one_line(error)
            while self.active:
                failed = self._remove_row(len(self.active) - 1, clear=True)
                self._fail(failed, reason, changed)
            self._self_test(reason)
            return
        self.steps += 1
        self._append_tokens(range(len(self.active)), logits, changed)

    def _append_tokens(self, rows: range, logits: Tensor, changed: dict[Generation, None]) -> None:
        """Append the next token to each of these rows; free the rows that are finished."""
        generations = [self.active[row] for row in rows]
        logits = logits[:, : self.vocabulary_size]
        # Copied first: `choose_tokens` adds biases in place, and log-probabilities are reported without.
        unbiased_logits = {
            index: logits[index].clone()
            for index, generation in enumerate(generations)
            if generation.sampling.top_logprobs is not None
        }
        samplings = [generation.sampling for generation in generations]
        random_generators = [generation.random_generator for generation in generations]
        tokens = choose_tokens(logits, samplings, random_generators)
        self.tokens += len(tokens)
        for index in reversed(range(len(generations))):
            generation = generations[index]
            token = tokens[index]
            if token is None:
                # Its cache may hold NaN, which would reach the next row in this slot as 0 * NaN = NaN.
                self._remove_row(rows[index], clear=True)
                reason = f"{NOT_FINITE} after {len(generation.output_ids)} tokens"
                self._fail(generation, reason, changed)
                continue
            if token != self.eos_id:
                generation.output_ids.append(token)
                if index in unbiased_logits:
                    top_count = generation.sampling.top_logprobs or 0
                    generation.logprobs.append(token_logprobs(unbiased_logits[index], token, top_count))
            if token == self.eos_id or len(generation.output_ids) >= generation.max_new_tokens:
                self._remove_row(rows[index])
                self._finish(generation, "stop" if token == self.eos_id else "length", changed)
            elif generation.notify_each_step:
                changed[generation] = None
        if None in tokens and not self.active:
            self._self_test(NOT_FINITE)

    def _self_test(self, reason: str) -> None:
        """Decode a source of one token, to tell a faulty request from a faulty model or device.

        Args:
            reason: the error after which the test is run.

        Raises:
            EngineFailedError: the test fails, so the fault is not a request's.
        """
        if len(self.row_cache) == self.row_cache.max_rows:
            return
        try:
            logits = self.row_cache.add_rows([[self.eos_id]])
            test_row = len(self.row_cache) - 1
            # A decoder step would also advance the rows of requests, so it is tested only without any.
            if len(self.row_cache) == 1:
                logits = torch.cat([logits, self.row_cache.decode_step([self.eos_id])])
            self.row_cache.remove_row(test_row, clear=True)
        except Exception as error:
            raise EngineFailedError(f"{reason}; then {one_line(error)}") from error
        if not bool(torch.isfinite(logits[:, : self.vocabulary_size].max(-1).values).all()):
            raise EngineFailedError(f"{reason}; then {NOT_FINITE} for a source of one token")

    def _remove_row(self, row: int, clear: bool = False) -> Generation:
        """Free a row, as `RowCache.remove_row` does, and return its generation."""
        removed = self.active[row]
        last_row = self.row_cache.remove_row(row, clear=clear)
        self.active[row] = self.active[last_row]
        self.active.pop()
        return removed

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
