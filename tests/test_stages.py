"""Stages add up what happened inside them and change nothing."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2sd import stages
from d2sd.stages import MOST_UNREAD, Stages, split, untimed


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves by hand: `clock[0] += seconds`."""
    now = [100.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    return now


def test_seconds_add_up_by_name(clock):
    timed = Stages()
    for seconds in (1.0, 2.5):
        with timed("draft"):
            clock[0] += seconds
        clock[0] += 50.0
        with timed("score"):
            clock[0] += 4.0
    assert dict(timed.seconds) == {"draft": 3.5, "score": 8.0}


def test_a_stage_that_fails_is_still_charged(clock):
    timed = Stages()

    def fail():
        with timed("draft"):
            clock[0] += 2.0
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert timed.seconds["draft"] == 2.0


def test_a_stage_inside_another_is_counted_in_both(clock):
    timed = Stages()
    with timed("draft"):
        clock[0] += 1.0
        with timed("draft 1"):
            clock[0] += 4.0
    assert timed.seconds == {"draft": 5.0, "draft 1": 4.0}


def test_what_was_before_can_be_forgotten(clock):
    timed = Stages()
    for seconds in (100.0, 2.0):
        timed.forget()
        with timed("draft"):
            clock[0] += seconds
    assert timed.seconds == {"draft": 2.0}


class GpuEvent:
    """A mark in the queue of a GPU that works behind the host."""

    waits = 0
    queue = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        self.at = GpuEvent.queue

    def synchronize(self):
        GpuEvent.waits += 1

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


def test_gpu_stages_are_marks_in_the_queue_and_only_reading_waits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", GpuEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    timed = Stages("cuda")
    for _ in range(3):
        with timed("score"):
            GpuEvent.queue += 2.0
        GpuEvent.queue += 1.0
    assert GpuEvent.waits == 0
    assert timed.seconds == {"score": 6.0}
    assert GpuEvent.waits > 0


def test_marks_do_not_pile_up(clock):
    timed = Stages()
    for _ in range(MOST_UNREAD + 10):
        with timed("draft"):
            clock[0] += 1.0
    assert len(timed._unread) < MOST_UNREAD
    assert timed.seconds == {"draft": MOST_UNREAD + 10.0}


@given(st.lists(st.floats(0, 100), min_size=7, max_size=7), st.integers(1, 50))
def test_a_split_sums_to_the_total(times, steps):
    first, plan, second, score, verify, commit, other = times
    measured = {
        "prefill": 9.0,
        "draft": first + plan + second,
        "draft 1": first,
        "draft 2": second,
        "score": score,
        "verify": verify,
        "commit": commit,
    }
    found = split(measured, total := sum(times) + 1.0, steps)
    assert sum(found.seconds.values()) == pytest.approx(total)
    assert list(found.seconds.values()) == pytest.approx([*times[:-1], other + 1.0])
    assert found.overhead == pytest.approx((plan + verify + commit + other + 1.0) / total)
    assert found.milliseconds() == pytest.approx(1000 * total / steps)
    assert found.milliseconds("score") == pytest.approx(1000 * score / steps)


def test_a_split_of_plain_decoding_has_no_drafters_in_it():
    found = split({"draft": 0.25, "score": 3.0}, total=4.0, steps=2)
    assert (found.seconds["draft 1"], found.seconds["plan"], found.seconds["other"]) == (
        0,
        0.25,
        0.75,
    )
    assert found.overhead == 0.25


def test_seven_stages_take_less_than_a_hundredth_of_a_quick_step():
    timed = Stages()
    start = time.perf_counter()
    for _ in range(7000):
        with timed("draft"):
            pass
    assert (time.perf_counter() - start) / 1000 < 0.01 * 0.030


def test_the_default_stage_lets_errors_through():
    def fail():
        with untimed("draft"):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
