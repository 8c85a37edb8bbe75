"""How a cost table looks, as JSON and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

from rich.table import Table
from rich.text import Text

from d2sd.cli.terminal import pages
from d2sd.costs import CostTable, Row
from d2sd.tuning.store import Key, StoredCosts

WIDTH, HEIGHT = 60, 14
MARKS, COLOURS = "abcdefgh", ("cyan", "yellow", "green", "magenta", "blue", "red")


def costs_json(stored: StoredCosts, key: Key, file: Path) -> dict[str, object]:
    """The object that `d2sd tune --json` prints. Seconds."""
    scope, costs = asdict(stored.scope), stored.table.to_json()
    return {"costs": costs, "scope": scope, "key": key, "file": str(file), "run": stored.run}


def print_costs(stored: StoredCosts, file: Path) -> None:
    """Milliseconds of every pass by size and context, the target's drawn, the conditions below."""
    table, run = stored.table, stored.run
    _print_grid("target, nodes", table.nodes, table.contexts, table.target)
    for name, seconds in (("first drafter", table.first), ("second drafter", table.second)):
        if seconds:
            pages.print()
            _print_grid(f"{name}, rows", table.rows, table.contexts, seconds)
    pages.print()
    for line in drawn_costs(table):
        pages.print(line, soft_wrap=True)
    pages.print(
        f"\nms per pass; outside the passes a step takes {1e3 * table.overhead:.2f} ms · "
        f"{run['model']} · {run['dtype']} on {run['device']} · {run['threads']} threads · "
        f"median of {stored.scope.repeats} · {run['date']}\nstored in {file}",
        style="dim",
        soft_wrap=True,
    )


def _print_grid(
    name: str, counts: Sequence[int], contexts: Sequence[int], seconds: Sequence[Row]
) -> None:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column(name, justify="right", min_width=20)
    for context in contexts:
        grid.add_column(f"{context} tokens", justify="right")
    for count, row in zip(counts, seconds, strict=True):
        grid.add_row(str(count), *(f"{1e3 * value:.2f}" for value in row))
    pages.print(grid)


def drawn_costs(table: CostTable) -> Iterator[Text]:
    """The target's milliseconds against its nodes, one letter per context length, line by line."""
    most = table.nodes[-1]
    places = [1 + round(column * (most - 1) / (WIDTH - 1)) for column in range(WIDTH)]
    curves = [[table.target_seconds(n, context) for n in places] for context in table.contexts]
    top = max(map(max, curves))
    for level in range(HEIGHT, 0, -1):
        label = f"{1e3 * top * level / HEIGHT:8.1f} │" if level % 4 == HEIGHT % 4 else " " * 9 + "│"
        line = Text(label)
        for column in range(WIDTH):
            line.append(*_mark([curve[column] / top for curve in curves], level))
        yield line
    yield Text(f"{'ms':>8} └{'─' * WIDTH}")
    yield Text(f"{'':10}1{f'{most} nodes':>{WIDTH - 1}}")
    legend = Text(" " * 10)
    for (mark, colour), context in zip(_styles(), table.contexts, strict=False):
        legend.append(f"{mark} {context} tokens   ", style=colour)
    yield legend


def _mark(heights: Sequence[float], level: int) -> tuple[str, str]:
    """What stands in one place: the first curve of those that pass through it."""
    for (mark, colour), height in zip(_styles(), heights, strict=False):
        if max(1, round(height * HEIGHT)) == level:
            return mark, colour
    return " ", ""


def _styles() -> Iterator[tuple[str, str]]:
    return zip(cycle(MARKS), cycle(COLOURS), strict=False)
