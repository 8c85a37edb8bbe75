"""How much a whole batch should draft: the planner's rule with costs learned while serving.

The rule is that of `d2sd.drafters.planner`: whoever always takes the step worth most at the going
rate of tokens a second reaches the best rate. A batch has one pass and one rate, so the nodes of
all its trees compete for the same seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from d2sd.drafters.hits import Average
from d2sd.drafters.planner import Choice, Estimates, best_budget, second_rows

FORGET = 0.98


@dataclass
class Line:
    """Seconds of a pass by its rows, a straight line through what was measured of late.

    Until passes of different sizes were seen, further rows seem to be free, so they are tried.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """A pass over so many rows took so long; much longer than expected counts in part."""
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

    def at(self, rows: int) -> float:
        """The seconds that a pass over so many rows should take."""
        if not self.weight:
            return 0.0
        mean, level = self.rows / self.weight, self.seconds / self.weight
        spread = self.squares / self.weight - mean * mean
        both = self.products / self.weight - mean * level
        slope = max(both / (spread + 1.0), 0.0)
        return max(level + slope * (rows - mean), 0.1 * level)


OUTLIER = 3.0
PLAIN_EVERY = 64
"""One step of so many is plain, so that the line goes on holding short passes too."""


@dataclass
class Pace:
    """What serving has shown so far of passes, of the rate, and of drafts that came true."""

    target: Line = field(default_factory=Line)
    passes: tuple[Line, Line] = field(default_factory=lambda: (Line(), Line()))
    estimates: Estimates | None = None
    gain: Average = field(default_factory=lambda: Average(1.0, 1.0, memory=64))
    """Tokens' worth that drafting adds to a step, its own price paid."""
    asked: int = 0

    def stepped(self, emitted: int, seconds: float) -> None:
        """A step of decoding took so long in all, drafting included."""
        if self.estimates is None:
            self.estimates = Estimates(seconds / max(emitted, 1))
        self.estimates.rate.add(float(emitted), seconds)
        self.estimates.probes.elapsed += seconds

    def came_true(self, accepted: int, predicted: float) -> None:
        """So many drafted tokens were accepted where so many were expected."""
        if self.estimates is not None:
            self.estimates.kept[1].add(float(accepted), predicted)

    def first_pays(self, requests: int) -> bool:
        """Whether to draft at all; now and then a try, and now and then none, to know both."""
        self.asked += 1
        if self.estimates is None or self.asked % PLAIN_EVERY == 0:
            return False
        if self.gain.value > 0:
            return True
        tried = self.estimates.probes.take(self.passes[0].at(requests) + self.target.at(requests))
        if not tried:
            self.gain.age()
        return tried

    def second_count(self, masses: Sequence[float]) -> int:
        """How many rows a second pass should redraft, of anchors with these gains, best first."""
        if self.estimates is None:
            return len(masses)
        seconds = [0.0, *(self.passes[1].at(count) for count in range(1, len(masses) + 1))]
        lift, rate = self.estimates.lift.value, self.estimates.rate.value
        if count := second_rows(masses, lift, seconds, rate).count:
            return count
        self.estimates.skipped_second()
        return len(masses) if self.estimates.probes.take(seconds[-1]) else 0

    def budget(self, chances: Sequence[float], requests: int) -> Choice:
        """How many of all requests' most probable paths the target should score."""
        if self.estimates is None:
            return Choice(len(chances), 0.0)
        seconds = [self.target.at(requests + nodes) for nodes in range(len(chances) + 1)]
        kept = self.estimates.kept_share(True)
        return best_budget(chances, seconds, self.estimates.rate.value, kept)

    def drafted(self, choice: Choice, requests: int, seconds: float) -> None:
        """Drafting took so long and led to this choice."""
        if self.estimates is not None:
            rate = self.estimates.rate.value
            plain = 1 - rate * self.target.at(requests)
            self.gain.add(choice.value - rate * seconds - plain)

    def lifted(self, rise: float, mass: float) -> None:
        """A second pass whose anchors have this mass raised a step's worth by so much."""
        if self.estimates is not None:
            self.estimates.lift.add(rise, max(mass, 1e-6))
