"""Progress as lines, where there is no terminal for a bar."""

from types import SimpleNamespace

import pytest

from d2sd.cli import progress
from d2sd.cli.progress import meter, training_meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def said(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_now_and_then_tells_the_time_left(clock, capsys):
    with meter("features") as move:
        for done in range(100, 131):  # a hundred were done by an earlier run
            move(done, 160)
            clock.seconds += 3
    assert said(capsys) == ["features: 120 of 160, 0:02:00 left"]


def test_other_processes_say_nothing(clock, capsys):
    with meter("features", shown=False) as move:
        for done in range(100):
            move(done, 160)
            clock.seconds += 3
    assert said(capsys) == []


def test_a_training_shows_all_stages_loss_and_acceptance(clock, capsys):
    with training_meter(shown=True) as hear:
        for done in range(1, 61):
            report = SimpleNamespace(loss=4.0 if done < 40 else 3.0)
            stage = "first" if done < 40 else "second"
            accepted = None if done < 20 else 1.5
            hear(
                SimpleNamespace(
                    stage=stage, report=report, done=done, total=80, acceptance=accepted
                )
            )
            clock.seconds += 3
    assert said(capsys) == [
        "first: loss 4.000, accepted 1.50: 21 of 80, 0:02:57 left",
        "second: loss 3.000, accepted 1.50: 41 of 80, 0:01:57 left",
    ]
