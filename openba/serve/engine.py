"""One thread that answers all requests: between two steps finished rows leave and waiting requests join.

Owns the queue, the thread and its failures. A row whose logits are not finite ends alone. After an error that
no row can be blamed for, the engine checks itself with its own source; if that fails too, the thread ends,
all requests get an error, and `state` says so. It handles token ids only; text and OpenAI's form stand in
`protocol.py`, `bodies.py` and `app.py`, the choice of tokens in `sampling.py`.
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
from openba.model.decoding import check_sources
from openba.model.seq2seq import Seq2Seq
from openba.serve.sampling import GREEDY, Sampling, TokenLogprobs, choose, token_logprobs
from openba.serve.slots import Slots

JOIN_TOKENS = 4096
"""Source tokens encoded between two steps at most: what the rows that are being written wait for."""
NOT_FINITE = "the model's logits are not finite"


class Full(Exception):
    """The queue has no room for the request; the client may try again."""


class EngineFailedError(Exception):
    """The engine cannot answer any more; its process has to be started again."""


@dataclass(eq=False)
class Job:
    """One prompt and what has been written to it; its lists grow in the engine's thread."""

    source: list[int]
    """Wrapped encoder ids."""
    limit: int
    """New tokens at most."""
    sampling: Sampling = GREEDY
    watched: bool = False
    """Notify after every step, not only at the end."""
    wake: Callable[[], None] = lambda: None
    """Called through the engine's `notify`."""
    written: list[int] = field(default_factory=list)
    """Without the closing `</s>`."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One for each written token, if `sampling.top_logprobs` is set."""
    reason: str | None = None
    """Why it ended: `stop`, `length`, `cancelled`, `error`; None while it goes on."""
    error: str = ""
    cancelled: bool = False
    """Set by whoever does not want the answer any more; the row leaves before the next step."""
    generator: torch.Generator | None = None


class Engine:
    """Continuous batching over one model."""

    def __init__(
        self,
        model: Seq2Seq,
        start: Sequence[int],
        eos: int,
        used: int,
        *,
        rows: int,
        queue: int,
        notify: Callable[[list[Job]], None],
    ) -> None:
        """Check that the model answers, and start the thread.

        Args:
            model: in evaluation mode.
            start: the decoder's first tokens.
            eos: the token that ends an answer.
            used: ids of the tokenizer; the vocabulary's padding rows beyond are never written.
            rows: answers written at once.
            queue: requests that may wait for a row.
            notify: called in the engine's thread after a step with the jobs to wake.

        Raises:
            EngineFailedError: the model gives no finite logits.
        """
        self.model, self.eos, self.used = model, eos, used
        self.queue, self.notify = queue, notify
        self.slots = Slots(model, rows, start)
        self.rows: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.steps = 0
        self.tokens = 0
        self.closing = False
        self.failure = ""
        """Why the thread ended before it was closed; empty if it did not."""
        self._joining: list[Job] = []
        """Taken from the queue in this step; some may have no row yet."""
        self._step_began: float | None = None
        self._next_line = 0.0
        self._change = threading.Condition()
        self._check_itself("the model does not answer")
        self.thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self.thread.start()

    @property
    def longest(self) -> int:
        """New tokens that an answer may have."""
        return self.model.architecture.decoder_max_seq_length - len(self.slots.start)

    def state(self, patience: float) -> str:
        """Return `ok`, `dead` (the thread has ended) or `stalled` (a step takes over `patience` seconds)."""
        if not self.thread.is_alive():
            return "dead"
        began = self._step_began
        return "stalled" if began is not None and time.monotonic() - began > patience else "ok"

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for rows: all or none of them.

        Raises:
            Full: too many wait already, or the engine takes no more.
            EngineFailedError: the engine has ended.
            UserError: a source that the model cannot read, a limit beyond its positions, a bias for no token.
        """
        check_sources(self.model, [job.source for job in jobs])
        if over := next((job for job in jobs if not 1 <= job.limit <= self.longest), None):
            raise UserError(f"max_tokens: {over.limit} is not between 1 and {self.longest}")
        for job in jobs:  # in the caller's thread: a parameter that is wrong must not meet the engine's
            if odd := [token for token in job.sampling.bias if not 0 <= token < self.used]:
                raise UserError(f"logit_bias: {odd[0]} is no token id below {self.used}")
            job.generator = job.sampling.generator(self.slots.cache.device)
        with self._change:
            if self.failure:
                raise EngineFailedError(self.failure)
            if len(self.waiting) + len(jobs) > self.queue:  # cancelled jobs need no place
                self.waiting = deque(job for job in self.waiting if not job.cancelled)
            if self.closing or len(self.waiting) + len(jobs) > self.queue:
                raise Full
            self.waiting += jobs
            self._change.notify()

    def close(self) -> None:
        """Take no more jobs; the thread ends when those that are there have been answered."""
        with self._change:
            self.closing = True
            self._change.notify()

    def _run(self) -> None:
        """Answer until closed. However it ends, no job is left without a reason."""
        try:
            self._answer()
        except BaseException as error:
            failure = one_line(error)
            print(f"openba: the engine has ended: {failure}", file=sys.stderr, flush=True)
            with self._change:
                self.failure, self.closing = failure, True
                taken = dict.fromkeys((*self.rows, *self._joining, *self.waiting))
                self.rows, self.waiting = [], deque()
            left_over = [job for job in taken if job.reason is None]
            for job in left_over:
                job.error, job.reason = "the engine has ended", "error"
            self.notify(left_over)

    def _answer(self) -> None:
        while True:
            with self._change:
                self._step_began = None
                while not (self.waiting or self.rows or self.closing):
                    self._change.wait()
                if not (self.waiting or self.rows):
                    return
                self._joining = self._next_to_join()
                self._step_began = time.monotonic()
            changed: dict[Job, None] = {}  # a set in order
            try:
                self._join(list(self._joining), changed)
                self._step(changed)
            finally:
                self.notify(list(changed))

    def _next_to_join(self) -> list[Job]:
        """Take the waiting jobs that join now: as many as rows are free, few enough tokens, at least one."""
        free = self.slots.count - len(self.rows)
        tokens = 0
        chosen: list[Job] = []
        while self.waiting and len(chosen) < free:
            tokens += len(self.waiting[0].source)
            if chosen and tokens > JOIN_TOKENS:
                break
            chosen.append(self.waiting.popleft())
        return chosen

    def _join(self, jobs: list[Job], changed: dict[Job, None]) -> None:
        """Encode the jobs' sources together; if that fails, each by itself, so that one fails alone."""
        for job in [job for job in jobs if job.cancelled]:
            jobs.remove(job)
            self._end(job, "cancelled", changed)
        if not jobs:
            return
        try:
            logits = self.slots.join([job.source for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], one_line(error), changed)
                self._check_itself(one_line(error))
                return
            for job in jobs:
                self._join([job], changed)
            return
        self.rows += jobs
        self._write(range(len(self.rows) - len(jobs), len(self.rows)), logits, changed)

    def _step(self, changed: dict[Job, None]) -> None:
        """Write one token to each row."""
        for row in reversed(range(len(self.rows))):
            if self.rows[row].cancelled:
                self._end(self._leave(row), "cancelled", changed)
        if not self.rows:
            return
        try:
            logits = self.slots.advance([job.written[-1] for job in self.rows])
        except Exception as error:  # such as a device out of memory
            reason = one_line(error)
            while self.rows:
                self._fail(self._leave(len(self.rows) - 1, clear=True), reason, changed)
            self._check_itself(reason)
            return
        self.steps += 1
        self._write(range(len(self.rows)), logits, changed)

    def _write(self, rows: range, logits: Tensor, changed: dict[Job, None]) -> None:
        """Give each of these rows its next token; those that have ended leave."""
        jobs = [self.rows[row] for row in rows]
        logits = logits[:, : self.used]
        recorded = {  # before the biases, which change the logits in their memory
            index: logits[index].clone()
            for index, job in enumerate(jobs)
            if job.sampling.top_logprobs is not None
        }
        tokens = choose(logits, [job.sampling for job in jobs], [job.generator for job in jobs])
        self.tokens += len(tokens)
        for index in reversed(range(len(jobs))):
            row, job, token = rows[index], jobs[index], tokens[index]
            if token is None:
                # Its cache may hold what is not finite, and 0 * NaN is NaN for whoever gets the slot next.
                self._fail(
                    self._leave(row, clear=True), f"{NOT_FINITE} after {len(job.written)} tokens", changed
                )
                continue
            if token != self.eos:
                job.written.append(token)
                if index in recorded:
                    job.logprobs.append(
                        token_logprobs(recorded[index], token, job.sampling.top_logprobs or 0)
                    )
            if token == self.eos or len(job.written) >= job.limit:
                self._leave(row)
                self._end(job, "stop" if token == self.eos else "length", changed)
            elif job.watched:
                changed[job] = None
        if None in tokens and not self.rows:
            self._check_itself(NOT_FINITE)

    def _check_itself(self, reason: str) -> None:
        """Answer a source of the engine's own while no other row is there, or only the rows before it.

        Raises:
            EngineFailedError: that fails, too, so the fault is the engine's and not a request's.
        """
        if len(self.slots) == self.slots.count:
            return
        try:
            logits = self.slots.join([[self.eos]])
            row = len(self.slots) - 1
            if len(self.slots) == 1:
                logits = torch.cat([logits, self.slots.advance([self.eos])])
            self.slots.leave(row, clear=True)
        except Exception as error:
            raise EngineFailedError(f"{reason}; then {one_line(error)}") from error
        if not bool(torch.isfinite(logits[:, : self.used].max(-1).values).all()):
            raise EngineFailedError(f"{reason}; then {NOT_FINITE} for a source of one token")

    def _leave(self, row: int, clear: bool = False) -> Job:
        """Free a row; the last row takes its place."""
        job = self.rows[row]
        last = self.slots.leave(row, clear=clear)
        self.rows[row] = self.rows[last]
        self.rows.pop()
        return job

    def _fail(self, job: Job, error: str, changed: dict[Job, None]) -> None:
        if time.monotonic() > self._next_line:  # one a second: clients must not fill the log
            self._next_line = time.monotonic() + 1.0
            print(f"openba: an answer failed: {error}", file=sys.stderr, flush=True)
        job.error = error
        self._end(job, "error", changed)

    @staticmethod
    def _end(job: Job, reason: str, changed: dict[Job, None]) -> None:
        job.reason = reason
        changed[job] = None
