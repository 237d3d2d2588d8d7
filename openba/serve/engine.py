"""One thread that answers all requests: between two steps finished rows leave and waiting requests join.

Owns the queue, the thread and what is written next (greedy, or sampled with the request's own random
numbers). It knows token ids only; text, HTTP and OpenAI's form stand in `protocol.py` and `app.py`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openba.errors import UserError
from openba.model.decoding import check_sources
from openba.model.seq2seq import Seq2Seq
from openba.serve.slots import Slots

JOIN_TOKENS = 4096
"""Source tokens encoded between two steps at most: what the rows that are being written wait for."""


class Full(Exception):
    """As many requests wait as may; the client is to come again."""


@dataclass(eq=False)
class Job:
    """One prompt and what has been written to it; its lists grow in the engine's thread."""

    source: list[int]
    """Wrapped encoder ids."""
    limit: int
    """New tokens at most."""
    temperature: float = 0.0
    """0: the likeliest token, always."""
    top_p: float = 1.0
    seed: int | None = None
    watched: bool = False
    """Told of after every step; else only at its end."""
    wake: Callable[[], None] = lambda: None
    """Called through the engine's `notify`."""
    written: list[int] = field(default_factory=list)
    """Without the closing `</s>`."""
    reason: str | None = None
    """Why it ended: `stop`, `length`, `cancelled`, `error`; None while it goes on."""
    error: str = ""
    cancelled: bool = False
    """Set by whoever does not want the answer any more; the row leaves before the next step."""
    random: torch.Generator | None = None


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
        """Start the thread.

        Args:
            model: in evaluation mode.
            start: the decoder's first tokens.
            eos: the token that ends an answer.
            used: ids of the tokenizer; the vocabulary's padding rows beyond are never written.
            rows: answers written at once.
            queue: requests that may wait for a row.
            notify: called in the engine's thread after a step with the jobs to wake.
        """
        self.model, self.eos, self.used, self.queue, self.notify = model, eos, used, queue, notify
        self.slots = Slots(model, rows, start)
        self.rows: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.steps, self.tokens = 0, 0
        """Steps done and tokens written so far."""
        self.closing = False
        self._change = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self.thread.start()

    @property
    def longest(self) -> int:
        """New tokens that an answer may have."""
        return self.model.architecture.decoder_max_seq_length - len(self.slots.start)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for rows: all or none of them.

        Raises:
            Full: too many wait already.
            UserError: a source that the model cannot read, or a limit beyond its positions.
        """
        check_sources(self.model, [job.source for job in jobs])
        if long := next((job for job in jobs if not 1 <= job.limit <= self.longest), None):
            raise UserError(f"max_tokens: {long.limit} is not between 1 and {self.longest}")
        with self._change:
            if len(self.waiting) + len(jobs) > self.queue:  # nobody waits for an answer to the cancelled ones
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
        while True:
            with self._change:
                while not (self.waiting or self.rows or self.closing):
                    self._change.wait()
                if not (self.waiting or self.rows):
                    return
                joining = self._chosen()
            told: dict[Job, None] = {}  # a set in order
            if joining:
                self._join(joining, told)
            if self.rows:
                self._step(told)
            self.notify(list(told))

    def _chosen(self) -> list[Job]:
        """The waiting jobs that join now: as many as rows are free, few enough tokens, at least one."""
        free, tokens = self.slots.count - len(self.rows), 0
        chosen: list[Job] = []
        while self.waiting and len(chosen) < free:
            tokens += len(self.waiting[0].source)
            if chosen and tokens > JOIN_TOKENS:
                break
            chosen.append(self.waiting.popleft())
        return chosen

    def _join(self, jobs: list[Job], told: dict[Job, None]) -> None:
        for job in [job for job in jobs if job.cancelled]:
            jobs.remove(job)
            self._end(job, "cancelled", told)
        if not jobs:
            return
        try:
            logits = self.slots.join([job.source for job in jobs])
        except Exception as error:
            for job in jobs:
                self._fail(job, error, told)
            return
        self.rows += jobs
        self._write(range(len(self.rows) - len(jobs), len(self.rows)), logits, told)

    def _step(self, told: dict[Job, None]) -> None:
        for row in reversed(range(len(self.rows))):
            if self.rows[row].cancelled:
                self._end(self._leave(row), "cancelled", told)
        if not self.rows:
            return
        try:
            logits = self.slots.advance([job.written[-1] for job in self.rows])
        except (
            Exception
        ) as error:  # such as a device out of memory: these answers are lost, the server is not
            while self.rows:
                self._fail(self._leave(len(self.rows) - 1), error, told)
            return
        self.steps += 1
        self._write(range(len(self.rows)), logits, told)

    def _write(self, rows: range, logits: Tensor, told: dict[Job, None]) -> None:
        """Give each of these rows its next token; those that have ended leave."""
        jobs = [self.rows[row] for row in rows]
        tokens = choose(logits[:, : self.used], jobs)
        self.tokens += len(tokens)
        for row, job, token in reversed(list(zip(rows, jobs, tokens, strict=True))):
            if token != self.eos:
                job.written.append(token)
            if token == self.eos or len(job.written) >= job.limit:
                self._leave(row)
                self._end(job, "stop" if token == self.eos else "length", told)
            elif job.watched:
                told[job] = None

    def _leave(self, row: int) -> Job:
        job, last = self.rows[row], self.slots.leave(row)
        self.rows[row] = self.rows[last]
        self.rows.pop()
        return job

    def _fail(self, job: Job, error: Exception, told: dict[Job, None]) -> None:
        job.error = f"{type(error).__name__}: {error}"
        self._end(job, "error", told)

    @staticmethod
    def _end(job: Job, reason: str, told: dict[Job, None]) -> None:
        job.reason = reason
        told[job] = None


@torch.inference_mode()
def choose(logits: Tensor, jobs: Sequence[Job]) -> list[int]:
    """The next token of each row of fp32 `[rows, vocab]`: the likeliest, or drawn as its job asks."""
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, job in enumerate(jobs):
        if job.temperature > 0:
            tokens[row] = _draw(logits[row], job)
    return tokens


def _draw(logits: Tensor, job: Job) -> int:
    """One token by temperature among the likeliest that together have `top_p`."""
    if job.random is None:
        job.random = torch.Generator(logits.device)
        job.random.manual_seed(job.seed) if job.seed is not None else job.random.seed()
    probabilities = torch.softmax(logits / job.temperature, -1)
    if job.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # The first token is always among them: what stands before it sums to nothing.
        ordered[ordered.cumsum(-1) - ordered >= job.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=job.random)])
    return int(torch.multinomial(probabilities, 1, generator=job.random))
