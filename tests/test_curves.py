"""Learning curves read from what a training wrote, and their trend."""

import json
import math
from pathlib import Path

import pytest

from d2sd.card.curves import Point, fit_trend, read_training

SHIPPED = Path(__file__).parents[1] / "src/d2sd/models/smollm2-135m/training.jsonl"


def written(folder, *lines):
    path = folder / "training.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(step, stage="first", **more):
    return {"stage": stage, "step": step, "positions": 1000 * step, **more}


def points(*acceptance, first=1):
    return [Point("first", i, 2**i, block=a) for i, a in enumerate(acceptance, first)]


def test_stages_are_apart_and_in_order(tmp_path):
    start = {"started": {"commit": "abc", "seed": 3}}
    path = written(
        tmp_path,
        start,
        line(10, block=1.5, loss=4.0, per_slot=[0.5, 0.25], seconds=30.0),
        line(20, block=2.0, loss=3.0, seconds=31.0),
        line(5, "second", block=2.0, dual=2.5, seconds=7.0),
    )
    training = read_training(path)
    assert training.provenance == {"commit": "abc", "seed": 3}
    first, second = training.stages["first"], training.stages["second"]
    assert list(training.stages) == ["first", "second"]
    assert first[0] == Point("first", 10, 10_000, 30.0, 4.0, 1.5, None, (0.5, 0.25))
    assert (first[1].seconds, first[1].acceptance) == (61.0, 2.0)  # the file has differences
    assert second[0].acceptance == 2.5  # of both drafters, where that was measured


def test_a_step_measured_twice_counts_once(tmp_path):
    again = line(10, block=1.6)
    stages = read_training(written(tmp_path, line(10, block=1.5), line(5), again)).stages
    assert [(p.step, p.block) for p in stages["first"]] == [(5, None), (10, 1.6)]


def test_missing_seconds_give_none_and_no_wrong_sums(tmp_path):
    path = written(tmp_path, line(1), line(2, seconds=4.0))
    assert [p.seconds for p in read_training(path).stages["first"]] == [None, None]


def test_the_older_format_that_ships_is_read():
    training = read_training(SHIPPED)
    assert training.provenance is None
    assert training.stages["first"][-1].step == 6000
    assert training.stages["second"][-1].acceptance == pytest.approx(3.30, abs=0.01)


@pytest.mark.parametrize(("text", "complaint"), [("{", "line 2 is not JSON"), ("3", "no JSON obj")])
def test_a_broken_line_is_named(tmp_path, text, complaint):
    path = written(tmp_path, line(1))
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(ValueError, match=complaint):
        read_training(path)


def test_a_line_torn_by_a_kill_is_left_out(tmp_path):
    path = written(tmp_path, line(1))
    path.write_text(path.read_text() + '{"stage": "fir')
    assert [p.step for p in read_training(path).stages["first"]] == [1]


def test_the_trend_is_the_gain_per_doubling_of_the_last_points():
    steady = points(9.0, 1.0, 1.5, 2.0)  # the first point is far off and must not count
    trend = fit_trend(steady)
    assert trend.per_doubling == pytest.approx(0.5)
    assert trend.at(2**5) == pytest.approx(2.5)
    assert (list(trend.points), trend.last) == (steady[1:], 2**4)
    assert trend.error == pytest.approx(0, abs=1e-12)
    assert fit_trend(steady, doublings=3.0).per_doubling < 0


def test_few_points_in_the_last_doublings_are_filled_up_to_three():
    far_apart = [Point("first", i, 10**i, block=float(i)) for i in range(1, 6)]
    assert fit_trend(far_apart).points == tuple(far_apart[-3:])


def test_the_trend_is_the_least_squares_line():
    bent = points(1.0, 2.0, 2.5, 2.4)
    trend = fit_trend(bent, doublings=9.0)
    errors = [p.acceptance - trend.at(p.positions) for p in bent]
    assert sum(errors) == pytest.approx(0, abs=1e-12)
    moments = sum(e * math.log2(p.positions) for e, p in zip(errors, bent, strict=True))
    assert moments == pytest.approx(0, abs=1e-12)
    # four points at 1, 2, 3, 4 doublings: their squared distances from the middle sum to 5
    assert trend.error == pytest.approx(math.sqrt(sum(e * e for e in errors) / 2 / 5))


def test_two_points_are_no_trend():
    assert fit_trend(points(1.0, 2.0)) is None
    assert fit_trend([*points(1.0, 2.0), Point("first", 9, 512)]) is None
