"""What passes cost on one machine: seconds by size and context length, looked up between points."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

Row = tuple[float, ...]
"""Seconds at each context length, or at each count 1, 2, 3, …"""


@dataclass(frozen=True)
class CostTable:
    """Measured seconds of the target's pass and of both drafters' passes.

    `target[i][j]` is the pass over `nodes[i]` nodes (the anchor is one) at `contexts[j]` tokens;
    `first[i][j]` and `second[i][j]` are passes over `rows[i]` rows, empty where there is no such
    drafter. No column falls as counts rise: whoever measures cleans that up. `overhead` is a
    step's time outside the passes.

    Between measured points a lookup is linear; below the first one it is flat; beyond the last
    one it goes on straight and never falls. Raises ValueError for a table that cannot be.
    """

    nodes: tuple[int, ...]
    contexts: tuple[int, ...]
    target: tuple[Row, ...]
    rows: tuple[int, ...]
    first: tuple[Row, ...]
    second: tuple[Row, ...]
    overhead: float

    def __post_init__(self) -> None:
        for name, counts in (("nodes", self.nodes), ("contexts", self.contexts)):
            _check_ascending(name, counts)
        if self.first or self.second:
            _check_ascending("rows", self.rows)
        _check_seconds("target", self.target, len(self.nodes), len(self.contexts))
        for name, seconds in (("first", self.first), ("second", self.second)):
            if seconds:
                _check_seconds(name, seconds, len(self.rows), len(self.contexts))
        if not (math.isfinite(self.overhead) and self.overhead >= 0):
            raise ValueError(f"a cost table's overhead is {self.overhead}; it must be 0 s or more")

    def target_seconds(self, nodes: int, context: int) -> float:
        """Of one target pass over `nodes` nodes behind `context` committed tokens."""
        return self._target.at(nodes, context)

    def target_row(self, context: int) -> Row:
        """`target_seconds` of 1, 2, … nodes up to the largest measured count, in one go."""
        return self._target.row(context)

    def first_seconds(self, context: int, rows: int = 1) -> float:
        """Of the first drafter's pass. Raises ValueError when it was not measured."""
        if not self.first:
            raise ValueError("the cost table holds no first drafter; measure it with one")
        return self._first.at(rows, context)

    def second_seconds(self, context: int, rows: int) -> float:
        """Of the second drafter's pass. Raises ValueError when it was not measured."""
        if not self.second:
            raise ValueError("the cost table holds no second drafter; measure it with one")
        return self._second.at(rows, context)

    @cached_property
    def _target(self) -> _Grid:
        return _Grid(self.nodes, self.contexts, self.target)

    @cached_property
    def _first(self) -> _Grid:
        return _Grid(self.rows, self.contexts, self.first)

    @cached_property
    def _second(self) -> _Grid:
        return _Grid(self.rows, self.contexts, self.second)

    def to_json(self) -> dict[str, object]:
        """The table as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> CostTable:
        """The table that `to_json` gave. Raises ValueError where it is damaged."""
        try:
            return cls(**{part.name: _tuples(values[part.name]) for part in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"a cost table is damaged: {error!r}; measure it anew") from error


class _Grid:
    """Seconds by count and context, the counts filled in once so that a lookup is one line."""

    def __init__(self, counts: Sequence[int], contexts: Sequence[int], seconds: Sequence[Row]):
        self._contexts = contexts
        columns = list(zip(*seconds, strict=True))
        self._columns = [_filled(counts, column) for column in columns]
        self._per_count = [_slope(counts, column) for column in columns]
        rows = zip(*self._columns, strict=True)
        # a larger pass gains no less from a longer context: else rows would cross far out
        self._per_token = tuple(accumulate((_slope(contexts, row) for row in rows), max))
        self._per_both = _slope(range(1, len(self._per_token) + 1), self._per_token)

    def at(self, count: int, context: int) -> float:
        last = len(self._per_token)
        known, more = max(1, min(count, last)) - 1, max(0, count - last)
        left, share, beyond = self._place(context)
        low = self._columns[left][known] + more * self._per_count[left]
        if beyond:
            return low + beyond * (self._per_token[known] + more * self._per_both)
        if not share:
            return low
        high = self._columns[left + 1][known] + more * self._per_count[left + 1]
        return low + share * (high - low)

    def row(self, context: int) -> Row:
        left, share, beyond = self._place(context)
        low = self._columns[left]
        if beyond:
            return tuple(a + beyond * b for a, b in zip(low, self._per_token, strict=True))
        if not share:
            return low
        high = self._columns[left + 1]
        return tuple(a + share * (b - a) for a, b in zip(low, high, strict=True))

    def _place(self, context: int) -> tuple[int, float, int]:
        """The measured context at or before this one, the share of the way on, and how far out."""
        contexts = self._contexts
        if context <= contexts[0]:
            return 0, 0.0, 0
        left = bisect_right(contexts, context) - 1
        if left == len(contexts) - 1:
            return left, 0.0, context - contexts[-1]
        return left, (context - contexts[left]) / (contexts[left + 1] - contexts[left]), 0


def _filled(counts: Sequence[int], seconds: Sequence[float]) -> Row:
    """Seconds at each count from 1 to the last measured one."""
    filled = [seconds[0]] * counts[0]
    points = zip(counts, seconds, strict=True)
    for (before, low), (after, high) in pairwise(points):
        width = after - before
        filled += [low + (high - low) * step / width for step in range(1, width)] + [high]
    return tuple(filled)


def _slope(places: Sequence[int], seconds: Sequence[float]) -> float:
    """How values go on behind the last: as between the last two, or first and last if steeper."""
    if len(places) < 2:
        return 0.0
    pairs = ((-2, -1), (0, -1))
    slopes = [(seconds[b] - seconds[a]) / (places[b] - places[a]) for a, b in pairs]
    return max(0.0, *slopes)


def _check_ascending(name: str, counts: Sequence[int]) -> None:
    whole = all(isinstance(count, int) for count in counts)
    if not (whole and counts and counts[0] >= 1 and all(a < b for a, b in pairwise(counts))):
        raise ValueError(f"a cost table's {name} are {counts}; they must be ascending from 1 or on")


def _check_seconds(name: str, seconds: Sequence[Row], counts: int, contexts: int) -> None:
    if [len(row) for row in seconds] != [contexts] * counts:
        raise ValueError(f"a cost table's {name} is not {counts} rows of {contexts} seconds")
    if not all(math.isfinite(value) and value > 0 for row in seconds for value in row):
        raise ValueError(f"a cost table's {name} holds {seconds}; seconds must be above 0")
    if any(a > b for less, more in pairwise(seconds) for a, b in zip(less, more, strict=True)):
        raise ValueError(f"a cost table's {name} falls as counts rise; clean the measurements up")


def _tuples(value: object) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def rising(seconds: Sequence[float]) -> Row:
    """The nearest values, by squares, that never fall: noisy measurements cleaned up.

    Neighbours that fall are replaced by their mean, again and again (pool adjacent violators).
    """
    pools: list[tuple[float, int]] = []
    for value in seconds:
        total, size = value, 1
        while pools and pools[-1][0] / pools[-1][1] > total / size:
            before, count = pools.pop()
            total, size = total + before, size + count
        pools.append((total, size))
    return tuple(total / size for total, size in pools for _ in range(size))
