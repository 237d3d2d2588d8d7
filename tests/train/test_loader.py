"""Batches made ahead: in order, no more than may wait, and errors reach who takes them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from openba.train.loader import STEPS_AHEAD, BatchLoader


def test_steps_come_in_order_and_few_wait() -> None:
    made: list[int] = []

    def make_step(step: int) -> list[Any]:
        made.append(step)
        return [step]

    loader = BatchLoader(make_step, 3, 50)
    for step in range(3, 20):
        time.sleep(0.002)  # the thread would run away, were it not held
        assert loader.take() == [step]
        # One is in the making beside those that wait.
        assert max(made) <= step + STEPS_AHEAD + 1
    loader.close()


def test_an_error_is_raised_where_the_batch_is_taken_and_not_before() -> None:
    def make_step(step: int) -> list[Any]:
        if step == 2:
            raise OSError("the disk is gone")
        return [step]

    loader = BatchLoader(make_step, 0, 5)
    assert [loader.take(), loader.take()] == [[0], [1]]
    with pytest.raises(OSError, match="the disk is gone"):
        loader.take()


def test_taking_more_than_there_is_does_not_wait_for_ever() -> None:
    loader = BatchLoader(lambda step: [], 0, 1)  # type: ignore[arg-type, return-value]
    assert loader.take() == []
    with pytest.raises(RuntimeError, match="has ended"):
        loader.take()


def test_a_closed_loader_ends_its_thread() -> None:
    before = set(threading.enumerate())
    loader = BatchLoader(lambda step: [], 0, 100)  # type: ignore[arg-type, return-value]
    (thread,) = set(threading.enumerate()) - before
    loader.close()
    thread.join(timeout=5)
    assert not thread.is_alive()
