"""Stages add up what happened inside them and change nothing."""

import pytest

from d2sd import stages
from d2sd.stages import Stages, untimed


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


def test_a_gpu_stage_ends_with_a_synchronisation(clock, monkeypatch):
    monkeypatch.setattr(
        stages.torch.cuda, "synchronize", lambda: clock.__setitem__(0, clock[0] + 7.0)
    )
    timed = Stages("cuda")
    with timed("score"):
        clock[0] += 1.0
    assert timed.seconds["score"] == 8.0


def test_the_default_stage_lets_errors_through():
    def fail():
        with untimed("draft"):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
