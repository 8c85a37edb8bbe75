"""What passes of a batch cost by their rows, learned while serving."""

from __future__ import annotations

from dataclasses import dataclass, field

FORGET = 0.98
OUTLIER = 3.0
"""Times what was expected that a measurement counts for at most."""
ONCE = 1.5
"""The same of the first pass of a size: it may be slow, and where few are drafted for most are."""


@dataclass
class Line:
    """Seconds of a pass by its rows, a straight line through what was measured of late.

    While all passes have one size they say nothing of a row's price, so the last one known stays.
    The first pass of a size isn't counted: kernels are made ready in it.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    per_row: float = 0.0
    sizes: set[int] = field(default_factory=set)

    def add(self, rows: int, seconds: float) -> None:
        """A pass over so many rows took so long; much longer than expected counts in part."""
        if rows not in self.sizes:
            self.sizes.add(rows)
            return
        if self.weight > 4:
            seconds = min(seconds, OUTLIER * max(self.at(rows), 1e-6))
        for name, value in (
            ("weight", 1.0),
            ("rows", rows),
            ("seconds", seconds),
            ("squares", rows * rows),
            ("products", rows * seconds),
        ):
            setattr(self, name, FORGET * getattr(self, name) + value)
        mean = self.rows / self.weight
        spread = self.squares / self.weight - mean * mean
        both = self.products / self.weight - mean * self.seconds / self.weight
        self.per_row = max((both + self.per_row) / (spread + 1.0), 0.0)

    def at(self, rows: int) -> float:
        """The seconds that a pass over so many rows should take."""
        if not self.weight:
            return 0.0
        level = self.seconds / self.weight
        return max(level + self.per_row * (rows - self.rows / self.weight), 0.1 * level)


STAIR = 8
"""Rows that a pass grows by."""


def stair(rows: int) -> int:
    return -(-rows // STAIR) * STAIR
