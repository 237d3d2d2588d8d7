"""The engine: rows that join and leave at any time get the tokens that they get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from openba.data.instruct import encode_input
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.generate import generate_ids, start_tokens
from openba.model.model import OpenBAModel
from openba.serve.engine import Engine, Full, Job, choose

TEXTS = (
    "房间很干净，服务也好。",
    "Translate into Chinese: the file was not found",
    "def",
    "书的质量太差了！" * 4,
)


class Watch:
    """Collects what the engine tells and lets a test wait for it."""

    def __init__(self) -> None:
        self.change = threading.Condition()
        self.told: list[tuple[Job, int, str | None]] = []

    def __call__(self, jobs: list[Job]) -> None:
        with self.change:
            self.told += [(job, len(job.written), job.reason) for job in jobs]
            self.change.notify_all()

    def until(self, jobs: list[Job]) -> None:
        with self.change:
            assert self.change.wait_for(lambda: all(job.reason for job in jobs), 30)


def started(loaded: tuple[OpenBAModel, Tokenizer], rows: int, queue: int) -> tuple[Engine, Watch]:
    model, tokenizer = loaded
    watch = Watch()
    start, eos, used = start_tokens(tokenizer), tokenizer.eos, tokenizer.size
    return Engine(model, start, eos, used, rows=rows, queue=queue, notify=watch), watch


@pytest.fixture(scope="module")
def running(loaded: tuple[OpenBAModel, Tokenizer]) -> Iterator[tuple[Engine, Watch]]:
    engine, watch = started(loaded, rows=5, queue=200)
    yield engine, watch
    engine.close()
    engine.thread.join(10)
    assert not engine.thread.is_alive()


def sources(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    return [encode_input(tokenizer, f"{TEXTS[i % 4]} {i}", [], 128) for i in range(count)]


def expected(
    loaded: tuple[OpenBAModel, Tokenizer], prompts: list[list[int]], limits: list[int]
) -> list[list[int]]:
    model, tokenizer = loaded
    written = generate_ids(model, tokenizer, prompts, max(limits))
    return [
        [t for t in ids[:limit] if t != tokenizer.eos] for ids, limit in zip(written, limits, strict=True)
    ]


def test_every_answer_is_the_one_it_gets_alone(
    running: tuple[Engine, Watch], loaded: tuple[OpenBAModel, Tokenizer]
) -> None:
    engine, watch = running
    prompts = sources(loaded[1], 60)
    limits = [3 + 7 * i % 50 for i in range(60)]
    jobs = [Job(source, limit) for source, limit in zip(prompts, limits, strict=True)]
    for begin in range(0, 60, 4):  # they come while others are being written
        engine.submit(jobs[begin : begin + 4])
        time.sleep(0.003)
    watch.until(jobs)
    answers = expected(loaded, prompts, limits)
    assert [job.written for job in jobs] == answers
    assert {job.reason for job in jobs} == {"stop", "length"}
    assert len({tuple(a) for a in answers}) > 40
    assert engine.rows == []
    assert len(engine.slots) == 0


def test_a_cancelled_row_leaves_and_the_others_go_on(
    running: tuple[Engine, Watch], loaded: tuple[OpenBAModel, Tokenizer]
) -> None:
    engine, watch = running
    prompts = sources(loaded[1], 12)
    jobs = [Job(source, 60, watched=True) for source in prompts]
    jobs[5].cancelled = True  # before it has a row
    engine.submit(jobs)
    with watch.change:
        assert watch.change.wait_for(lambda: len(jobs[0].written) > 1 or jobs[0].reason, 30)
    jobs[1].cancelled = True
    watch.until(jobs)
    answers = expected(loaded, prompts, [60] * 12)
    assert (jobs[5].reason, jobs[5].written) == ("cancelled", [])
    for i, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        if i not in (1, 5):
            assert job.written == answer
    assert jobs[1].written == answers[1][: len(jobs[1].written)]


def test_a_full_queue_refuses_and_forgets_those_that_left(loaded: tuple[OpenBAModel, Tokenizer]) -> None:
    tokenizer = loaded[1]
    engine, watch = started(loaded, rows=1, queue=3)
    (source,) = sources(tokenizer, 1)
    with pytest.raises(Full):
        engine.submit([Job(source, 5) for _ in range(4)])
    assert len(engine.waiting) == 0  # all or none
    with pytest.raises(UserError, match="max_tokens: 127 is not between 1 and 126"):
        engine.submit([Job(source, 127)])
    with pytest.raises(UserError, match="there is no token"):
        engine.submit([Job([], 5)])
    last = [Job(source, 40) for _ in range(3)]
    engine.submit(last)
    engine.close()
    with pytest.raises(Full):
        engine.submit([Job(source, 5)])
    watch.until(last)  # what was there is answered
    engine.thread.join(10)
    assert not engine.thread.is_alive()


def test_a_failed_step_fails_its_rows_only(loaded: tuple[OpenBAModel, Tokenizer]) -> None:
    tokenizer = loaded[1]
    engine, watch = started(loaded, rows=4, queue=9)
    (source,) = sources(tokenizer, 1)
    broken = Job(source, 9)
    broken.source = [tokenizer.size + 10**6]  # past the check of `submit`
    with engine._change:
        engine.waiting.append(broken)
        engine._change.notify()
    watch.until([broken])
    assert broken.reason == "error"
    assert "UserError: source row 0, position 0" in broken.error
    whole = Job(source, 9)
    engine.submit([whole])
    watch.until([whole])
    assert whole.written == expected(loaded, [source], [9])[0]
    engine.close()


def test_samples_are_the_seeds_and_nobody_elses(
    running: tuple[Engine, Watch], loaded: tuple[OpenBAModel, Tokenizer]
) -> None:
    engine, watch = running
    (source,) = sources(loaded[1], 1)
    alone = Job(source, 20, temperature=1.0, top_p=0.9, seed=7)
    engine.submit([alone])
    watch.until([alone])
    crowd = [Job(source, 20, temperature=1.0, top_p=0.9, seed=seed) for seed in (7, 8, 9)]
    engine.submit(crowd)
    watch.until(crowd)
    assert crowd[0].written == alone.written
    assert crowd[1].written != alone.written


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    job = Job([1], 1, temperature=1.0, top_p=0.6, seed=1)
    drawn = [choose(probabilities.log()[None], [job])[0] for _ in range(2000)]
    # 0.5 alone is less than 0.6, with the next it is enough: two remain, 5 to 3.
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 2000 == pytest.approx(5 / 8, abs=0.05)
    sharp = Job([1], 1, temperature=0.01, seed=1)
    assert {choose(probabilities.log()[None], [sharp])[0] for _ in range(50)} == {0}
