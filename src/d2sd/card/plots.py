"""Plots of learning and acceptance: small PNG files, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d2sd.card.curves import Point, fit_trend
from d2sd.costs import CostTable
from d2sd.pictures import colour, draw_line, new_figure, save_picture

MILLION = 1e6

ACCEPTANCE = "acceptance length\n(tokens per target pass)"
Axis = Literal["positions", "seconds"]


@dataclass(frozen=True)
class Bars:
    """Acceptance lengths of one policy by suite, each with its 95 % interval if it has one."""

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Reliability:
    """What was said and whether it held, in bins; `error` is the expected calibration error.

    `said[i]` is the mean stated probability of bin i, `held[i]` the share that came true,
    `counts[i]` how many there were.
    """

    said: tuple[float, ...]
    held: tuple[float, ...]
    counts: tuple[int, ...]
    error: float


def draw_curves(curves: Mapping[str, Sequence[Point]], x: Axis, out: Path) -> None:
    """Acceptance length against masked slots or seconds of training, one line per named run.

    The slots are on a logarithmic axis: there a steady gain per doubling is a straight line.
    """
    figure, (axes,) = new_figure(1, width=6.8 if len(curves) <= 4 else 8.4)
    for index, (name, points) in enumerate(curves.items()):
        known = [p for p in points if getattr(p, x) is not None and p.acceptance is not None]
        draw_line(axes, index, name, [_along(p, x) for p in known], [p.acceptance for p in known])
    _learning_axis(axes, x)
    axes.set_ylabel(ACCEPTANCE)
    if len(curves) <= 4:
        axes.legend(fontsize=9)
    else:  # a long legend would cover the lines
        figure.legend(loc="outside right upper", fontsize=9)
    save_picture(figure, out)


def draw_learning(stages: Mapping[str, Sequence[Point]], out: Path) -> None:
    """Loss and acceptance of each stage against the slots learned from, and the next doubling.

    The dotted line is `fit_trend` on the last points, drawn to twice the slots.
    """
    has_loss = any(p.loss is not None for points in stages.values() for p in points)
    figure, panels = new_figure(2 if has_loss else 1)
    for index, (stage, points) in enumerate(stages.items()):
        known = [p for p in points if p.acceptance is not None]
        heights = [p.acceptance for p in known]
        draw_line(panels[-1], index, stage, [_along(p, "positions") for p in known], heights)
        _predict(panels[-1], index, points)
        lost = [p for p in points if p.loss is not None]
        if has_loss:
            places = [_along(p, "positions") for p in lost]
            draw_line(panels[0], index, stage, places, [p.loss for p in lost])
    for axes in panels:
        _learning_axis(axes, "positions")
    panels[-1].set_ylabel(ACCEPTANCE)
    panels[-1].plot([], [], ":", color="#555555", linewidth=1.4, label="fit, to twice the slots")
    panels[-1].legend(fontsize=9)
    if has_loss:
        panels[0].set_ylabel("training loss (nats per slot)")
    save_picture(figure, out)


def draw_depths(rates: Mapping[str, Sequence[float]], out: Path) -> None:
    """How often the token at each depth is accepted, given that all before it were."""
    figure, (axes,) = new_figure(1)
    for index, (name, shares) in enumerate(rates.items()):
        depths = [depth for depth, share in enumerate(shares, 1) if share == share]
        draw_line(axes, index, name, depths, [100 * shares[depth - 1] for depth in depths])
    axes.set_xlabel("depth in the draft (tokens after the anchor)")
    axes.set_ylabel("accepted, given that all\nbefore it were (%)")
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=9)
    save_picture(figure, out)


def draw_suites(policies: Mapping[str, Bars], out: Path) -> None:
    """Acceptance length by suite and policy, with 95 % intervals; plain decoding stands at 1."""
    suites = list(dict.fromkeys(suite for bars in policies.values() for suite in bars.values))
    figure, (axes,) = new_figure(1, 1.1 + len(suites) * (0.12 + 0.15 * len(policies)))
    width = 0.82 / max(len(policies), 1)
    for index, (name, bars) in enumerate(policies.items()):
        own = [suite for suite in suites if suite in bars.values]
        places = [suites.index(suite) + (index + 0.5) * width - 0.41 for suite in own]
        lengths = [bars.values[suite] - 1 for suite in own]
        axes.barh(places, lengths, 0.9 * width, 1, color=colour(index), label=name)
        for place, suite in zip(places, own, strict=True):
            if suite in bars.intervals:
                axes.plot(bars.intervals[suite], (place, place), color="#111111", linewidth=1.1)
    axes.set_yticks(range(len(suites)), suites)
    axes.set_ylim(len(suites) - 0.5, -0.5)
    axes.set_xlim(left=1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("acceptance length (tokens per target pass), 95 % intervals")
    figure.legend(loc="outside upper center", ncols=min(len(policies), 3) or 1, frameon=False)
    save_picture(figure, out)


def draw_reliability(told: Mapping[str, Reliability], out: Path) -> None:
    """What was said against what held, one panel each; the area of a dot is its bin's count."""
    figure, panels = new_figure(max(len(told), 1), 3.3, 3.1 * max(len(told), 1))
    for index, (axes, (name, bins)) in enumerate(zip(panels, told.items(), strict=True)):
        axes.plot((0, 100), (0, 100), color="#999999", linewidth=1, zorder=0)
        most = max(bins.counts, default=1) or 1
        said, held = ([100 * share for share in row] for row in (bins.said, bins.held))
        axes.plot(said, held, color=colour(index), linewidth=1)
        areas = [8 + 110 * count / most for count in bins.counts]
        axes.scatter(said, held, areas, color=colour(index), linewidths=0, clip_on=False)
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="stated probability (%)")
        axes.set_title(f"{name}\nECE {100 * bins.error:.1f} %", fontsize=10.5)
    panels[0].set_ylabel("came true (%)")
    save_picture(figure, out)


def draw_boundaries(said: Sequence[float], held: Sequence[float], out: Path) -> None:
    """How often exactly i drafted tokens were right, and how often r(i) said they would be.

    The last place is the whole block.
    """
    figure, (axes,) = new_figure(1)
    places = range(len(held))
    axes.bar(places, [100 * share for share in held], 0.8, color="#b8cfe0", label="measured")
    draw_line(axes, 1, "said, mean r(i)", list(places), [100 * share for share in said])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("drafted tokens accepted before the first rejection")
    axes.set_ylabel("share of blocks (%)")
    axes.legend(fontsize=9)
    save_picture(figure, out)


def draw_costs(table: CostTable, out: Path) -> None:
    """Milliseconds of the target's pass against its nodes, one line per context length."""
    figure, (axes,) = new_figure(1)
    for index, context in enumerate(table.contexts):
        heights = [1e3 * row[index] for row in table.target]
        draw_line(axes, index, f"{context} tokens", table.nodes, heights)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("nodes of the tree, anchor included")
    axes.set_ylabel("target pass (ms)")
    axes.legend(fontsize=9, title="context")
    save_picture(figure, out)


def _predict(axes: Any, index: int, points: Sequence[Point]) -> None:
    trend = fit_trend(points)
    if trend is None:
        return
    ends = (trend.points[0].positions, 2 * trend.last)
    places = [end / MILLION for end in ends]
    axes.plot(places, [trend.at(end) for end in ends], ":", color=colour(index), linewidth=1.4)


def _along(point: Point, x: Axis) -> float:
    if x == "positions":
        return point.positions / MILLION
    assert point.seconds is not None
    return point.seconds / 60


def _learning_axis(axes: Any, x: Axis) -> None:
    if x == "seconds":
        axes.set_xlabel("training time (minutes)")
        return
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("masked slots learned from (millions)")
