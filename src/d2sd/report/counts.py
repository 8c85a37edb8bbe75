"""Counts of all suites together: positions reached and accepted, tokens emitted."""

from __future__ import annotations

from collections.abc import Sequence

from d2sd.bench.results import Results
from d2sd.report.tables import contenders, rows_of

FEW = 20
"""A share of fewer steps than this says nothing."""
DEEPEST = 16
"""Copies from the text may go on for longer; nothing else does."""


def positions(results: Results, temperature: float, name: str) -> tuple[list[int], list[float]]:
    """The first positions that enough steps reached, and the shares in % that were right there."""
    reached: dict[int, int] = {}
    accepted: dict[int, int] = {}
    for row in rows_of(results, temperature, name):
        for one in row.positions:
            reached[one.position] = reached.get(one.position, 0) + one.reached
            accepted[one.position] = accepted.get(one.position, 0) + one.accepted
    places = [place for place in sorted(reached) if reached[place] >= FEW and place <= DEEPEST]
    return places, [100 * accepted[place] / reached[place] for place in places]


MANY = 12
"""Steps that emit more are counted with those that emit so many."""


def drafting(results: Results, temperature: float) -> list[str]:
    """Contenders that ever emit more than one token a step."""
    return [
        name
        for name in contenders(results)
        if any(len(row.histogram) > 2 for row in rows_of(results, temperature, name))
    ]


def shares_of(histograms: Sequence[Sequence[int]]) -> list[float]:
    """How many % of all steps emitted 0, 1, 2 … tokens; the last entry may be MANY or more."""
    counts = [0] * min(max(map(len, histograms)), MANY + 1)
    for histogram in histograms:
        for emitted, count in enumerate(histogram):
            counts[min(emitted, MANY)] += count
    return [100 * count / sum(counts) for count in counts]
