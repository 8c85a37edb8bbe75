"""Tables of a bench, every figure from its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from d2sd.bench.results import Interval, Mean, Means, Results, Row, Section
from d2sd.report.document import ABSENT, NOT_ASKED, NOTHING, Table

BASELINE = "none"


def contenders(results: Results) -> list[str]:
    """All that were asked for: those that took part in their order, then the absent."""
    taking_part = [one.name for one in results.participants]
    return [*taking_part, *(name for name in results.absent if name not in taking_part)]


def policies(results: Results) -> list[str]:
    """Ours of those that took part."""
    return [one.name for one in results.participants if one.kind == "policy"]


def missing(results: Results, name: str) -> str:
    """What stands where a contender has no figures."""
    return ABSENT if name in results.absent else NOT_ASKED


def sections_at(results: Results, temperature: float) -> list[Section]:
    return [section for section in results.sections if section.temperature == temperature]


def rows_of(results: Results, temperature: float, name: str) -> list[Row]:
    """A contender's rows at one temperature, suite by suite."""
    sections = sections_at(results, temperature)
    return [section.rows[name] for section in sections if name in section.rows]


def main_table(results: Results, means: Means) -> Table:
    """Table 3 of the paper: suites by contenders, the mean last, the fastest of ours bold."""
    names, ours = contenders(results), policies(results)
    lines: list[tuple[str, Mapping[str, Row] | Mapping[str, Mean]]] = [
        (section.suite, section.rows) for section in sections_at(results, means.temperature)
    ]
    lines.append(("**mean**", means.rows))
    rows = []
    for title, found in lines:
        bold = fastest({name: found[name].speedup for name in ours if name in found})
        cells = (
            _pair(found[name], name in bold) if name in found else missing(results, name)
            for name in names
        )
        rows.append((title, *cells))
    caption = (
        f"Temperature {means.temperature:g}: speed-up over plain decoding / acceptance length. "
        "Bold: the fastest of our policies, and those whose speed-up lies within its interval."
        f"{not_asked(results, means.temperature)}"
    )
    return Table(("suite", *(f"`{name}`" for name in names)), tuple(rows), caption)


def fastest(speedups: Mapping[str, Interval | None]) -> set[str]:
    """The names with the best speed-up, or one that the best one's interval doesn't exclude."""
    known = {name: one for name, one in speedups.items() if one is not None and name != BASELINE}
    if not known:
        return set()
    best = max(known.values(), key=lambda one: one.value)
    return {name for name, one in known.items() if one.value >= min(best.low, best.value)}


def absent_notes(results: Results) -> tuple[str, ...]:
    """Who is absent, and why."""
    return tuple(f"`{name}` is absent: {reason}" for name, reason in results.absent.items())


def not_asked(results: Results, temperature: float) -> str:
    """Who took part, but not at this temperature; empty where everyone did."""
    there = {name for section in sections_at(results, temperature) for name in section.rows}
    quiet = [name for name in contenders(results) if name not in {*there, *results.absent}]
    listed = ", ".join(f"`{name}`" for name in quiet)
    return f" Not asked at this temperature: {listed}." if quiet else ""


def detail_table(results: Results, means: Means) -> Table:
    """Contenders by figures, means over suites; turns with identical answers are counted."""
    head = (
        *("contender", "acceptance length", "mean of answers' own", "nodes a step", "tokens/s"),
        *("with prefill", "speed-up", "speed-up with prefill", "identical answers", "arithmetic"),
    )
    arithmetic = {one.name: one.arithmetic for one in results.participants}
    rows = []
    for name in contenders(results):
        mean, own = means.rows.get(name), rows_of(results, means.temperature, name)
        if mean is None:
            cells = (missing(results, name),) * (len(head) - 2)
        else:
            cells = (
                between(mean.acceptance_length),
                _mean_of(own, lambda row: row.acceptance_length_by_answer.value, "{:.2f}"),
                f"{mean.nodes_per_step:.1f}",
                f"{mean.tokens_per_second:.1f}",
                _mean_of(own, lambda row: row.tokens_per_second_with_prefill, "{:.1f}"),
                between(mean.speedup),
                _mean_of(own, lambda row: row.speedup_with_prefill, "{:.2f}"),
                _identical(own),
            )
        rows.append((f"`{name}`", *cells, arithmetic.get(name, NOTHING)))
    suites = ", ".join(means.suites)
    caption = f"Temperature {means.temperature:g}, means over {suites}."
    return Table(head, tuple(rows), caption)


def short_table(results: Results, means: Means) -> Table:
    """What a reader in a hurry wants: one row a contender, means and the range over suites."""
    head = ("contender", "acceptance length", "nodes a step", "tokens/s", "speed-up", "by suite")
    rows = []
    for name, mean in means.rows.items():
        speeds = [r.speedup.value for r in rows_of(results, means.temperature, name) if r.speedup]
        cells = (
            f"{mean.acceptance_length.value:.2f}",
            f"{mean.nodes_per_step:.1f}",
            f"{mean.tokens_per_second:.1f}",
            between(mean.speedup),
            f"{min(speeds):.2f} to {max(speeds):.2f}" if speeds else NOTHING,
        )
        rows.append((f"`{name}`", *cells))
    return Table(head, tuple(rows))


def suite_table(results: Results, section: Section) -> Table:
    """One suite in full."""
    head = (
        *("contender", "acceptance length", "mean of answers' own", "steps", "nodes a step"),
        *("tokens/s", "median of prompts (quartiles)", "with prefill", "speed-up"),
        *("speed-up with prefill", "identical answers"),
    )
    rows = []
    for name in contenders(results):
        row = section.rows.get(name)
        gap = (missing(results, name),) * (len(head) - 1)
        rows.append((f"`{name}`", *(gap if row is None else _suite_cells(row))))
    return Table(head, tuple(rows))


def _suite_cells(row: Row) -> tuple[str, ...]:
    low, high = row.quartiles
    return (
        between(row.acceptance_length),
        between(row.acceptance_length_by_answer),
        str(row.steps),
        f"{row.nodes_per_step:.1f}",
        f"{row.tokens_per_second:.1f}",
        f"{row.median_tokens_per_second:.1f} ({low:.1f} to {high:.1f})",
        f"{row.tokens_per_second_with_prefill:.1f}",
        between(row.speedup),
        number(row.speedup_with_prefill, "{:.2f}"),
        _identical([row]),
    )


def stage_split(results: Results, temperature: float) -> dict[str, dict[str, float]]:
    """Milliseconds a step by stage, means over suites, of the contenders that tell."""
    split: dict[str, dict[str, float]] = {}
    for name in contenders(results):
        told = [row.stages_ms for row in rows_of(results, temperature, name) if row.stages_ms]
        if told:
            stages = dict.fromkeys(stage for row in told for stage in row)
            split[name] = {s: fmean(row.get(s, 0.0) for row in told) for s in stages}
    return split


def stages_of(split: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The stages in their order that took any time."""
    named = dict.fromkeys(stage for stages in split.values() for stage in stages)
    return [s for s in named if any(abs(of.get(s, 0.0)) > 1e-4 for of in split.values())]


def stage_table(results: Results, temperature: float) -> Table:
    """Where a step's time goes."""
    split = stage_split(results, temperature)
    stages = stages_of(split)
    rows = []
    for name, of in split.items():
        own = rows_of(results, temperature, name)
        cells = [f"{of.get(stage, 0.0):.2f}" for stage in stages]
        overhead = _mean_of(own, lambda row: row.overhead, "{:.1%}")
        rows.append((f"`{name}`", *cells, f"{sum(of.values()):.2f}", overhead))
    silent = [n for n in contenders(results) if n not in split and n not in results.absent]
    caption = f"Temperature {temperature:g}: milliseconds a step, means over suites."
    if silent and rows_of(results, temperature, silent[0]):
        caption += f" Not told by {', '.join(f'`{name}`' for name in silent)}."
    return Table(("contender", *stages, "whole step", "overhead"), tuple(rows), caption)


def between(interval: Interval | None, pattern: str = "{:.2f}") -> str:
    """A figure and its interval."""
    if interval is None:
        return NOTHING
    value, low, high = (pattern.format(part) for part in interval)
    return value if low == high == value else f"{value} ({low} to {high})"


def number(value: float | None, pattern: str) -> str:
    return NOTHING if value is None else pattern.format(value)


def _pair(found: Row | Mean, bold: bool) -> str:
    speed = NOTHING if found.speedup is None else f"{found.speedup.value:.2f}"
    speed = f"**{speed}**" if bold else speed
    return f"{speed} / {found.acceptance_length.value:.2f}"


def _mean_of(rows: Sequence[Row], of: Callable[[Row], float | None], pattern: str) -> str:
    values = [value for value in map(of, rows) if value is not None]
    return number(fmean(values) if values else None, pattern)


def _identical(rows: Sequence[Row]) -> str:
    counts = [row.identical for row in rows if row.identical is not None]
    if not counts:
        return NOTHING
    return f"{sum(counts)}/{sum(row.turns for row in rows if row.identical is not None)}"
