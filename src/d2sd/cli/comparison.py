"""How the results of a bench look on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from d2sd.bench.results import Interval, Mean, Means, Results, Row, Section
from d2sd.cli.terminal import pages

LEGEND = (
    "acceptance: tokens per target pass · tokens/s: decoding time, prefill excluded · "
    "identical: turns with the tokens of none · ± half of a 95 % interval over prompts\n"
    "draft 1, draft 2, score: passes of the drafters and the target · plan: the rest of "
    "drafting · outside: the share of a step outside the passes"
)


def print_results(results: Results) -> None:
    """A table for every suite and temperature, means over suites, and the conditions below."""
    for section in results.sections:
        pages.print(_heading(section), style="bold")
        pages.print(_figures(section))
        told = {name: row for name, row in section.rows.items() if row.stages_ms}
        if told:
            pages.print(_split(told))
        pages.print()
    for means in results.means:
        if len(means.suites) > 1:
            where = f"mean of {len(means.suites)} suites, {_at(means.temperature)}"
            pages.print(where, style="bold")
            pages.print(_mean_figures(means))
            pages.print()
    for name, reason in results.absent.items():
        pages.print(f"{name} is absent: {reason}", style="dim", soft_wrap=True)
    pages.print(_conditions(results), style="dim", soft_wrap=True)


def _heading(section: Section) -> str:
    return f"{section.suite}, {section.prompts} prompts, {_at(section.temperature)}"


def _at(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _table(first: str, *names: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # 80 columns are enough
    table.add_column(first, overflow="fold", min_width=14)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _figures(section: Section) -> Table:
    """One row per contender, the best speed in bold."""
    table = _table("contender", "acceptance", "tokens/s", "× none", "nodes/step", "identical")
    fastest = max(row.tokens_per_second for row in section.rows.values())
    for name, row in section.rows.items():
        table.add_row(
            name,
            _around(row.acceptance_length, section.prompts),
            f"{row.tokens_per_second:.1f}",
            _around(row.speedup, section.prompts),
            f"{row.nodes_per_step:.1f}",
            "?" if row.identical is None else f"{row.identical}/{row.turns}",
            style="bold" if row.tokens_per_second == fastest else None,
        )
    return table


def _split(rows: Mapping[str, Row]) -> Table:
    """One row per policy: what a step takes and where, in milliseconds."""
    parts = list(next(iter(rows.values())).stages_ms)
    table = _table("ms a step", "total", *parts, "outside")
    for name, row in rows.items():
        times = (sum(row.stages_ms.values()), *(row.stages_ms[part] for part in parts))
        table.add_row(name, *(f"{time:.2f}" for time in times), f"{row.overhead or 0:.1%}")
    return table


def _mean_figures(means: Means) -> Table:
    table = _table("contender", "acceptance", "tokens/s", "× none", "nodes/step")
    fastest = max(row.tokens_per_second for row in means.rows.values())
    for name, row in means.rows.items():
        bold = "bold" if row.tokens_per_second == fastest else None
        table.add_row(name, *_mean_cells(row, means.prompts), style=bold)
    return table


def _mean_cells(row: Mean, prompts: int) -> tuple[str, ...]:
    return (
        _around(row.acceptance_length, prompts),
        f"{row.tokens_per_second:.1f}",
        _around(row.speedup, prompts),
        f"{row.nodes_per_step:.1f}",
    )


def _around(interval: Interval | None, prompts: int) -> str:
    """A single prompt has no interval."""
    if interval is None:
        return ""
    if prompts == 1:
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ± {(interval.high - interval.low) / 2:.2f}"


def _conditions(results: Results) -> str:
    facts = results.settings
    tokens = max((row.new_tokens for s in results.sections for row in s.rows.values()), default=0)
    return (
        f"at most {facts['max_new_tokens']} tokens an answer, {tokens} a suite · {facts['model']} "
        f"· {facts['dtype']} on {facts['device']} · {facts['threads']} threads · "
        f"seed {facts['seed']}\n{LEGEND}"
    )
