"""The engine: rows that join and leave at any time get the tokens that they get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.model.adapter_bank import AdapterBank
from openba.model.generate import generate_ids
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.model.step import BlockStep
from openba.serve.decoding_engine import DecodingEngine
from openba.serve.engine import NOT_FINITE, EngineFailedError, EngineSettings, Generation, QueueFullError
from openba.serve.sampling import Sampling
from openba.tokenizer.tokenizer import Tokenizer

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
        self.told: list[tuple[Generation, int, str | None]] = []

    def __call__(self, jobs: list[Generation]) -> None:
        with self.change:
            self.told += [(job, len(job.output_ids), job.finish_reason) for job in jobs]
            self.change.notify_all()

    def until(self, jobs: list[Generation]) -> None:
        with self.change:
            assert self.change.wait_for(lambda: all(job.finish_reason for job in jobs), 30)


def started(
    loaded: tuple[OpenBAModel, Tokenizer], rows: int, queue: int, bank: AdapterBank | None = None
) -> tuple[DecodingEngine, Watch]:
    model, tokenizer = loaded
    watch = Watch()
    engine = DecodingEngine(model, EngineSettings(tokenizer, rows, queue, watch), bank)
    return engine, watch


@pytest.fixture(scope="module")
def running(loaded: tuple[OpenBAModel, Tokenizer]) -> Iterator[tuple[DecodingEngine, Watch]]:
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
    running: tuple[DecodingEngine, Watch], loaded: tuple[OpenBAModel, Tokenizer]
) -> None:
    engine, watch = running
    prompts = sources(loaded[1], 60)
    limits = [3 + 7 * i % 50 for i in range(60)]
    jobs = [Generation(source, limit) for source, limit in zip(prompts, limits, strict=True)]
    for begin in range(0, 60, 4):  # they come while others are being written
        engine.submit(jobs[begin : begin + 4])
        time.sleep(0.003)
    watch.until(jobs)
    answers = expected(loaded, prompts, limits)
    assert [job.output_ids for job in jobs] == answers
    assert {job.finish_reason for job in jobs} == {"stop", "length"}
    assert len({tuple(a) for a in answers}) > 40
    assert engine.active == []
    assert len(engine.row_cache) == 0


def test_a_cancelled_row_leaves_and_the_others_go_on(
    running: tuple[DecodingEngine, Watch], loaded: tuple[OpenBAModel, Tokenizer]
) -> None:
    engine, watch = running
    prompts = sources(loaded[1], 12)
    jobs = [Generation(source, 60, notify_each_step=True) for source in prompts]
    jobs[5].is_cancelled = True  # before it has a row
    engine.submit(jobs)
    with watch.change:
        assert watch.change.wait_for(lambda: len(jobs[0].output_ids) > 1 or jobs[0].finish_reason, 30)
    jobs[1].is_cancelled = True
    watch.until(jobs)
    answers = expected(loaded, prompts, [60] * 12)
    assert (jobs[5].finish_reason, jobs[5].output_ids) == ("cancelled", [])
    for i, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        if i not in (1, 5):
            assert job.output_ids == answer
    assert jobs[1].output_ids == answers[1][: len(jobs[1].output_ids)]


def test_a_full_queue_refuses_and_forgets_those_that_left(loaded: tuple[OpenBAModel, Tokenizer]) -> None:
    tokenizer = loaded[1]
    engine, watch = started(loaded, rows=1, queue=3)
    (source,) = sources(tokenizer, 1)
    with pytest.raises(QueueFullError):
        engine.submit([Generation(source, 5) for _ in range(4)])
    assert len(engine.queue) == 0  # all or none
    with pytest.raises(UserError, match="max_tokens: 127 is not between 1 and 126"):
        engine.submit([Generation(source, 127)])
    with pytest.raises(UserError, match="there is no token"):
        engine.submit([Generation([], 5)])
    last = [Generation(source, 40) for _ in range(3)]
    engine.submit(last)
    engine.close()
    with pytest.raises(QueueFullError):
        engine.submit([Generation(source, 5)])
    watch.until(last)  # what was there is answered
    engine.thread.join(10)
    assert not engine.thread.is_alive()


def test_a_failed_step_fails_its_rows_only(loaded: tuple[OpenBAModel, Tokenizer]) -> None:
    tokenizer = loaded[1]
    engine, watch = started(loaded, rows=4, queue=9)
    (source,) = sources(tokenizer, 1)
    broken = Generation(source, 9)
    broken.source_ids = [tokenizer.size + 10**6]  # past the check of `submit`
    with engine._queue_changed:
        engine.queue.append(broken)
        engine._queue_changed.notify()
    watch.until([broken])
    assert broken.finish_reason == "error"
    assert "source row 0, position 0" in broken.error
    whole = Generation(source, 9)
    engine.submit([whole])
    watch.until([whole])
    assert whole.output_ids == expected(loaded, [source], [9])[0]
    engine.close()


def test_samples_are_the_seeds_and_nobody_elses(
    running: tuple[DecodingEngine, Watch], loaded: tuple[OpenBAModel, Tokenizer]
) -> None:
    engine, watch = running
    (source,) = sources(loaded[1], 1)
    alone = Generation(source, 20, Sampling(1.0, 0.9, seed=7))
    engine.submit([alone])
    watch.until([alone])
    crowd = [Generation(source, 20, Sampling(1.0, 0.9, seed=seed)) for seed in (7, 8, 9)]
    engine.submit(crowd)
    watch.until(crowd)
    assert crowd[0].output_ids == alone.output_ids
    assert crowd[1].output_ids != alone.output_ids


@pytest.fixture
def poisoned(model_folder: Path) -> tuple[OpenBAModel, Tokenizer, int]:
    """The model with one token whose embedding is not a number; an answer that reads it has such logits."""
    model, tokenizer = load_model(model_folder)
    (token,) = set(tokenizer.encode("服务")[-1:])
    with torch.no_grad():
        model.shared_embedding.weight[token] = torch.nan
    return model, tokenizer, token


@pytest.mark.parametrize("compiled", [True, False])
def test_logits_that_are_not_finite_end_their_row_only(
    poisoned: tuple[OpenBAModel, Tokenizer, int], loaded: tuple[OpenBAModel, Tokenizer], compiled: bool
) -> None:
    """Also what comes into the same slots later is not touched by what the failed rows left there."""
    model, tokenizer, token = poisoned
    engine, watch = started((model, tokenizer), rows=4, queue=200)
    if not compiled:  # the form of GPUs and of other precisions, which attends to hidden places with weight 0
        engine.row_cache.step = BlockStep(model)
    good = [source for source in sources(tokenizer, 60) if token not in source]
    answers = [
        answer if token not in answer[:-1] else None for answer in expected(loaded, good, [40] * len(good))
    ]
    good_jobs = [Generation(source, 40) for source in good]
    bad_jobs = [Generation([*good[0][:-2], token, *good[0][-2:]], 40) for _ in range(30)]
    mixed = [job for pair in zip(bad_jobs, good_jobs, strict=False) for job in pair]
    engine.submit([*mixed, *good_jobs[len(bad_jobs) :]])
    watch.until(good_jobs + bad_jobs)
    assert {(job.finish_reason, job.error) for job in bad_jobs} == {("error", f"{NOT_FINITE} after 0 tokens")}
    compared = 0
    for job, answer in zip(good_jobs, answers, strict=True):
        if answer is not None:
            assert (job.output_ids, job.finish_reason == "error") == (answer, False)
            compared += 1
    assert compared > 20
    assert engine.state(60) == "ok"
    engine.close()
    engine.thread.join(10)
    assert engine.failure == ""


def test_one_source_that_cannot_be_encoded_fails_alone(loaded: tuple[OpenBAModel, Tokenizer]) -> None:
    engine, watch = started(loaded, rows=4, queue=9)
    good = sources(loaded[1], 3)
    jobs = [Generation(source, 9) for source in good]
    broken = Generation([loaded[1].size + 10**6], 9)
    with engine._queue_changed:  # past the check of `submit`, all to be encoded together
        engine.queue.extend([jobs[0], broken, jobs[1], jobs[2]])
        engine._queue_changed.notify()
    watch.until([*jobs, broken])
    assert [job.output_ids for job in jobs] == expected(loaded, good, [9] * 3)
    assert broken.finish_reason == "error"
    engine.close()


def test_a_step_that_fails_once_does_not_end_the_engine(loaded: tuple[OpenBAModel, Tokenizer]) -> None:
    engine, watch = started(loaded, rows=4, queue=9)
    (source,) = sources(loaded[1], 1)
    real, failures = engine.row_cache.step, iter([True])

    def fail_once(*arguments: Any) -> torch.Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError("out of memory")
        return real(*arguments)

    fail_once.logits = real.logits  # type: ignore[attr-defined]
    engine.row_cache.step = fail_once  # type: ignore[assignment]
    lost, kept = Generation(source, 9), Generation(source, 9)
    engine.submit([lost])
    watch.until([lost])
    assert "out of memory" in lost.error
    engine.submit([kept])
    watch.until([kept])
    assert kept.output_ids == expected(loaded, [source], [9])[0]
    engine.close()


def test_a_device_that_stays_broken_ends_the_engine_and_all_its_requests(
    loaded: tuple[OpenBAModel, Tokenizer], capsys: pytest.CaptureFixture[str]
) -> None:
    engine, watch = started(loaded, rows=1, queue=9)
    (source,) = sources(loaded[1], 1)

    def fail(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("device-side assert triggered")

    engine.row_cache.step = fail  # type: ignore[assignment]
    jobs = [Generation(source, 9) for _ in range(3)]
    engine.submit(jobs)
    watch.until(jobs)  # those that wait, too
    engine.thread.join(10)
    assert [job.finish_reason for job in jobs] == ["error"] * 3
    assert engine.state(60) == "dead"
    assert "device-side assert" in engine.failure
    with pytest.raises(EngineFailedError, match="device-side assert"):
        engine.submit([Generation(source, 9)])
    assert "the engine has ended" in capsys.readouterr().err


def test_no_request_is_left_without_an_answer_if_sources_cannot_be_encoded_any_more(
    loaded: tuple[OpenBAModel, Tokenizer],
) -> None:
    engine, watch = started(loaded, rows=4, queue=9)

    def fail(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("device-side assert triggered")

    engine.row_cache.add_rows = fail  # type: ignore[method-assign, assignment]
    jobs = [
        Generation(source, 9) for source in sources(loaded[1], 6)
    ]  # four to be encoded together, two wait
    engine.submit(jobs)
    watch.until(jobs)
    assert [job.finish_reason for job in jobs] == ["error"] * 6
    engine.thread.join(10)
    assert engine.state(60) == "dead"


def test_a_step_without_end_is_told(loaded: tuple[OpenBAModel, Tokenizer]) -> None:
    engine, watch = started(loaded, rows=1, queue=9)
    (source,) = sources(loaded[1], 1)
    real, go_on = engine.row_cache.step, threading.Event()

    def wait(*arguments: Any) -> torch.Tensor:
        go_on.wait(20)
        return real(*arguments)

    wait.logits = real.logits  # type: ignore[attr-defined]
    engine.row_cache.step = wait  # type: ignore[assignment]
    job = Generation(source, 9)
    engine.submit([job])
    time.sleep(0.3)
    assert (engine.state(0.1), engine.state(60)) == ("stalled", "ok")
    go_on.set()
    watch.until([job])
    time.sleep(0.1)
    assert engine.state(0.1) == "ok"
    engine.close()


def test_a_model_without_finite_logits_is_refused(model_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(model_folder)
    with torch.no_grad():
        model.decoder.final_layernorm.weight.fill_(torch.nan)
    with pytest.raises(EngineFailedError, match=NOT_FINITE):
        started((model, tokenizer), rows=1, queue=1)
