"""Plots of a bench: bars by contender, curves by position and by size, honesty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from d2sd.bench.results import Interval, Means, Results
from d2sd.card.plots import ACCEPTANCE, Reliability, draw_reliability
from d2sd.pictures import COLOURS, WIDTH, colour, draw_line, new_figure, save_picture
from d2sd.report.comparisons import family, option, variants
from d2sd.report.counts import DEEPEST, FEW, MANY, drafting, positions, shares_of
from d2sd.report.document import Picture
from d2sd.report.tables import (
    BASELINE,
    contenders,
    missing,
    policies,
    rows_of,
    sections_at,
    stage_split,
    stages_of,
)

OURS, OTHERS = COLOURS[0], COLOURS[4]


def overview(results: Results) -> Iterator[Picture]:
    """Speed-ups of all contenders."""
    if any(mean.speedup for means in results.means for mean in means.rows.values()):
        caption = (
            "Speed-up over plain decoding, means over suites. Lines are 95 % intervals, blue bars "
            "are our policies, orange ones other programs."
        )
        yield Picture("speed-ups", caption, partial(draw_speedups, results))


def of_temperature(results: Results, means: Means) -> Iterator[Picture]:
    """The pictures of one temperature but for its stages."""
    at, short = means.temperature, f"t{means.temperature:g}"
    if len(means.suites) > 1:
        caption = f"Speed-up by suite, temperature {at:g}. Lines are 95 % intervals."
        yield Picture(f"suites-{short}", caption, partial(draw_suites, results, at))
    if any(positions(results, at, name)[0] for name in contenders(results)):
        caption = (
            f"Acceptance by position, temperature {at:g}. How often the token at a position of "
            "the draft was right, of the steps in which all before it were; all suites together, "
            f"points of fewer than {FEW} steps and positions beyond {DEEPEST} left out."
        )
        yield Picture(f"positions-{short}", caption, partial(draw_positions, results, at))
    if drafting(results, at):
        caption = (
            f"Tokens emitted per step, temperature {at:g}. Shares of steps, all suites; at {MANY} "
            "those that emitted as many or more."
        )
        yield Picture(f"emitted-{short}", caption, partial(draw_emitted, results, at))


def stages_picture(results: Results, temperature: float) -> Iterator[Picture]:
    if stage_split(results, temperature):
        caption = f"Where a step's time goes, temperature {temperature:g}. Means over suites."
        yield Picture(
            f"stages-t{temperature:g}", caption, partial(draw_stages, results, temperature)
        )


def sizes(results: Results, means: Means) -> Iterator[Picture]:
    """Curves over the size of trees or of blocks, in the studies of these."""
    at = means.temperature
    if results.study == "budget":
        caption = (
            f"Acceptance and speed by measured nodes a step, temperature {at:g}. Means over "
            "suites, upright lines are 95 % intervals."
        )
        yield Picture(f"budget-t{at:g}", caption, partial(draw_sizes, results, means, None))
    if results.study == "block-size":
        caption = (
            f"Acceptance and speed by block size, temperature {at:g}. Means over suites, upright "
            "lines are 95 % intervals."
        )
        yield Picture(
            f"block-size-t{at:g}", caption, partial(draw_sizes, results, means, "block_size")
        )


def honesty(results: Results) -> Iterator[Picture]:
    """Calibration diagrams, a picture for every temperature."""
    for temperature in dict.fromkeys(one.temperature for one in results.calibration):
        caption = (
            f"Calibration, temperature {temperature:g}. How often what was stated came true; "
            "on the diagonal confidences are honest. A dot's area is its number of statements."
        )
        draw = partial(draw_calibration, results, temperature)
        yield Picture(f"calibration-t{temperature:g}", caption, draw)


def draw_speedups(results: Results, out: Path) -> None:
    """Bars with whiskers, a panel for every temperature."""
    names = contenders(results)
    figure, panels = new_figure(len(results.means), 0.9 + 0.27 * len(names))
    for place, (axes, means) in enumerate(zip(panels, results.means, strict=True)):
        found = {name: mean.speedup for name, mean in means.rows.items()}
        _bars(axes, results, [found.get(name) for name in names], 9.0)
        _name_rows(axes, names, place == 0)
        axes.set_title(f"temperature {means.temperature:g}", fontsize=10.5)
    figure.supxlabel("speed-up over plain decoding", fontsize=10)
    save_picture(figure, out)


def draw_suites(results: Results, temperature: float, out: Path) -> None:
    """A small panel of bars for every suite, four in a row, the axes alike."""
    sections = sections_at(results, temperature)
    names = [n for n in contenders(results) if any(n in s.rows for s in sections)]
    columns = min(len(sections), 4)
    rows = -(-len(sections) // columns)
    figure, panels = new_figure(columns, rows * (0.55 + 0.19 * len(names)), WIDTH, rows)
    found = [[s.rows[n].speedup if n in s.rows else None for n in names] for s in sections]
    widest = max((one.high for row in found for one in row if one is not None), default=1.0)
    for place, axes in enumerate(panels):
        if place >= len(sections):
            axes.set_visible(False)
            continue
        _bars(axes, results, found[place], None, names)
        _name_rows(axes, names, place % columns == 0, 8.0)
        axes.set_xlim(0, 1.04 * widest)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.set_title(sections[place].suite, fontsize=9.5)
    figure.supxlabel("speed-up over plain decoding", fontsize=10)
    save_picture(figure, out)


def draw_positions(results: Results, temperature: float, out: Path) -> None:
    """One line a contender."""
    figure, (axes,) = new_figure(1, 4.2)
    for index, name in enumerate(contenders(results)):
        places, shares = positions(results, temperature, name)
        if places:
            draw_line(axes, index, name, places, shares)
    axes.set(ylim=(0, 100), xlabel="position in the draft (tokens after the anchor)")
    axes.set_ylabel("right, given that all\nbefore it were (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper", fontsize=8.5, frameon=False)
    save_picture(figure, out)


def draw_emitted(results: Results, temperature: float, out: Path) -> None:
    """A small histogram for everyone who drafts, three in a row, the axes alike."""
    shares = {
        name: shares_of([row.histogram for row in rows_of(results, temperature, name)])
        for name in drafting(results, temperature)
    }
    columns = min(len(shares), 3)
    rows = -(-len(shares) // columns)
    figure, panels = new_figure(columns, 0.5 + 1.25 * rows, WIDTH, rows)
    widest = max(map(len, shares.values()))
    highest = max(max(heights[1:]) for heights in shares.values())
    for place, axes in enumerate(panels):
        if place >= len(shares):
            axes.set_visible(False)
            continue
        name, heights = list(shares.items())[place]
        axes.bar(range(len(heights)), heights, 0.85, color=_kind_colour(results, name))
        axes.set(xlim=(0.4, widest - 0.4), ylim=(0, 1.05 * highest))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8.5)
        axes.set_title(name, fontsize=9)
    figure.supxlabel("tokens emitted by a step", fontsize=10)
    figure.supylabel("steps (%)", fontsize=10)
    save_picture(figure, out)


def draw_stages(results: Results, temperature: float, out: Path) -> None:
    """A stacked bar a contender, for those that tell."""
    split = stage_split(results, temperature)
    stages = stages_of(split)
    figure, (axes,) = new_figure(1, 1.2 + 0.3 * len(split))
    lefts = [0.0] * len(split)
    for index, stage in enumerate(stages):
        widths = [of.get(stage, 0.0) for of in split.values()]
        axes.barh(range(len(split)), widths, 0.72, lefts, color=colour(index), label=stage)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    _name_rows(axes, list(split), True)
    axes.set_xlabel("milliseconds a step")
    figure.legend(loc="outside upper center", ncols=len(stages) or 1, frameon=False, fontsize=9)
    save_picture(figure, out)


def draw_sizes(results: Results, means: Means, key: str | None, out: Path) -> None:
    """Acceptance and speed along an option, or along nodes a step; one line a policy."""
    figure, panels = new_figure(2, 3.6)
    ours = [n for n in policies(results) if n in means.rows and n != BASELINE]
    for index, policy in enumerate(dict.fromkeys(map(family, ours))):
        names = [n for n in variants(ours, policy) if key is None or option(n, key)]
        spots = sorted((_size(means, name, key), name) for name in names)
        for axes, of in zip(panels, ("acceptance_length", "speedup"), strict=True):
            known = [(x, getattr(means.rows[n], of)) for x, n in spots]
            _curve(axes, index, policy, [(x, one) for x, one in known if one is not None])
    for axes, label in zip(panels, (ACCEPTANCE, "speed-up over plain decoding"), strict=True):
        axes.set_xlabel("nodes a step" if key is None else key.replace("_", " "))
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    save_picture(figure, out)


def draw_calibration(results: Results, temperature: float, out: Path) -> None:
    """A diagram for each thing said."""
    told = {
        one.of: Reliability(
            tuple(bin.said for bin in one.bins),
            tuple(bin.held for bin in one.bins),
            tuple(bin.count for bin in one.bins),
            one.error,
        )
        for one in results.calibration
        if one.temperature == temperature
    }
    draw_reliability(told, out)


def _bars(
    axes: Any,
    results: Results,
    speedups: Sequence[Interval | None],
    labels: float | None,
    names: Sequence[str] | None = None,
) -> None:
    """Horizontal bars; `labels` is the size of the figures written behind them."""
    names = names or contenders(results)
    for place, (name, one) in enumerate(zip(names, speedups, strict=True)):
        if one is None:
            axes.text(0.03, place, missing(results, name), va="center", fontsize=8, color="#666666")
            continue
        axes.barh(place, one.value, 0.72, color=_kind_colour(results, name))
        axes.plot((one.low, one.high), (place, place), color="#111111", linewidth=1.1)
        if labels is not None:
            text = f"{one.value:.2f}"
            axes.annotate(
                text,
                (max(one.high, one.value), place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=labels,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # over the line at 1
            )
    axes.axvline(1, color="#333333", linewidth=0.9, linestyle="--")
    if labels is not None:
        ends = [max(one.high, one.value) for one in speedups if one is not None]
        axes.set_xlim(0, 1.25 * max([1.0, *ends]))


def _name_rows(axes: Any, names: Sequence[str], shown: bool, size: float = 9.5) -> None:
    axes.set_yticks(range(len(names)), names if shown else [""] * len(names), fontsize=size)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _kind_colour(results: Results, name: str) -> str:
    return OURS if name in policies(results) else OTHERS


def _size(means: Means, name: str, key: str | None) -> float:
    return means.rows[name].nodes_per_step if key is None else float(option(name, key) or 0)


def _curve(axes: Any, index: int, name: str, spots: Sequence[tuple[float, Interval]]) -> None:
    """A line with an interval at every point."""
    x = [place for place, _ in spots]
    draw_line(axes, index, name, x, [one.value for _, one in spots])
    lows, highs = [one.low for _, one in spots], [one.high for _, one in spots]
    axes.vlines(x, lows, highs, color=colour(index), linewidth=0.9)
