"""Plots: small pictures, the same for the same numbers, that show every number given."""

import builtins
import math

import pytest
from PIL import Image

from d2sd.card import plots
from d2sd.card.curves import Point
from d2sd.card.plots import (
    Bars,
    Reliability,
    draw_boundaries,
    draw_curves,
    draw_depths,
    draw_learning,
    draw_reliability,
    draw_suites,
)

MOST_BYTES = 60_000


def run(gain, count=12, **more):
    return [
        Point("first", 10 * i, 10_000 * i, 60.0 * i, 5 - gain * i, 1 + gain * math.log2(i), **more)
        for i in range(1, count + 1)
    ]


CURVES = {"two layers": run(0.3), "three layers": run(0.4, dual=3.0)}
MANY = {f"run {i}": run(0.1 * i, 60) for i in range(12)}
SUITES = {
    policy: Bars({f"suite {i}": 1.5 + i / 5 for i in range(8)}, {"suite 3": (1.9, 2.4)})
    for policy in ("block", "dual", "merged:budget=64")
}
BINS = Reliability((0.1, 0.5, 0.9), (0.2, 0.45, 0.97), (3, 40, 1000), 0.021)
PICTURES = {
    "curves by slots": lambda out: draw_curves(CURVES, "positions", out),
    "curves by time": lambda out: draw_curves(MANY, "seconds", out),
    "learning": lambda out: draw_learning({"first": run(0.3), "second": run(0.1, 2)}, out),
    "depths": lambda out: draw_depths({"block": [0.8, 0.6, math.nan]}, out),
    "suites": lambda out: draw_suites(SUITES, out),
    "reliability": lambda out: draw_reliability({"first": BINS, "second": BINS}, out),
    "boundaries": lambda out: draw_boundaries([0.2, 0.3, 0.5], [0.25, 0.3, 0.45], out),
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that the test draws, as matplotlib has them."""
    figures = []
    save = plots.save_picture

    def keep(figure, out):
        figures.append(figure)
        save(figure, out)

    monkeypatch.setattr(plots, "save_picture", keep)
    return figures


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_white_and_the_same_each_time(tmp_path, drawn, name):
    for place in ("a.png", "b.png"):
        PICTURES[name](tmp_path / place)
    first, second = ((tmp_path / place).read_bytes() for place in ("a.png", "b.png"))
    assert first == second
    assert len(first) < MOST_BYTES
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    assert picture.getpixel((1, 1)) == (255, 255, 255)
    assert len(picture.getcolors(1 << 16)) > 10
    assert all(axes.get_ylabel() for axes in drawn[0].axes[:1] if name != "suites")
    assert all(axes.get_xlabel() for axes in drawn[0].axes)


def line_of(axes, label):
    return next(line for line in axes.get_lines() if line.get_label() == label)


def test_curves_show_slots_in_millions_or_time_in_minutes(tmp_path, drawn):
    draw_curves(CURVES, "positions", tmp_path / "a.png")
    draw_curves(CURVES, "seconds", tmp_path / "b.png")
    by_slots, by_time = (line_of(figure.axes[0], "two layers") for figure in drawn)
    assert list(by_slots.get_xdata()) == [p.positions / 1e6 for p in CURVES["two layers"]]
    assert list(by_time.get_xdata()) == list(range(1, 13))
    assert list(by_time.get_ydata()) == [p.block for p in CURVES["two layers"]]
    assert set(line_of(drawn[0].axes[0], "three layers").get_ydata()) == {3.0}


def test_points_without_a_time_are_left_out_of_curves_by_time(tmp_path, drawn):
    untimed = [Point("first", 1, 1000, block=1.5), Point("first", 2, 2000, 60.0, block=1.7)]
    draw_curves({"run": untimed}, "seconds", tmp_path / "a.png")
    assert list(line_of(drawn[0].axes[0], "run").get_ydata()) == [1.7]


def test_learning_predicts_the_next_doubling_and_leaves_out_a_loss_nobody_wrote(tmp_path, drawn):
    draw_learning({"first": run(0.3)}, tmp_path / "a.png")
    draw_learning({"first": [Point("first", 1, 1000, block=1.5)]}, tmp_path / "b.png")
    assert [len(figure.axes) for figure in drawn] == [2, 1]
    dotted = next(line for line in drawn[0].axes[1].get_lines() if line.get_linestyle() == ":")
    assert list(dotted.get_xdata()) == [0.03, 0.24]  # over two doublings, then one more
    slope = 0.3 * math.log2(0.24 / 0.03)
    assert dotted.get_ydata()[1] - dotted.get_ydata()[0] == pytest.approx(slope)


def test_bars_begin_at_plain_decoding_and_carry_their_intervals(tmp_path, drawn):
    draw_suites(SUITES, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    bars = axes.patches[:8]
    assert {bar.get_x() for bar in bars} == {1}
    assert [bar.get_x() + bar.get_width() for bar in bars] == pytest.approx(
        list(SUITES["block"].values.values())
    )
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1.9, 2.4]] * 3
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SUITES["block"].values)


def test_depths_leave_gaps_where_nothing_was_measured(tmp_path, drawn):
    draw_depths({"block": [0.8, math.nan, 0.5]}, tmp_path / "a.png")
    line = line_of(drawn[0].axes[0], "block")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 3], [80, 50])


def test_a_reliability_panel_states_its_error(tmp_path, drawn):
    draw_reliability({"confidences": BINS}, tmp_path / "a.png")
    assert drawn[0].axes[0].get_title() == "confidences\nECE 2.1 %"


def test_without_matplotlib_the_sentence_has_the_fix(tmp_path, monkeypatch):
    load = builtins.__import__

    def missing(name, *rest, **named):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"plots need matplotlib: pip install 'd2sd\[train\]'"):
        draw_curves(CURVES, "positions", tmp_path / "a.png")
