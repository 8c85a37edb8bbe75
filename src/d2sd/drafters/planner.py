"""How much to draft: the choices that make the most of a second, and what they are made from.

Decoding as a whole is to give most tokens a second. If it gives `rate`, a step that is expected to
emit E tokens in t seconds is worth E - rate × t: whoever always takes the step worth most reaches
the best rate there is (Dinkelbach 1967; for renewal rewards Ross 1970). All choices here are pure
functions of gains in tokens, of seconds and of that rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from d2sd.drafters.hits import Average, HitRates


@dataclass(frozen=True)
class Choice:
    """How many to take, and what that is worth in tokens."""

    count: int
    value: float


def best_count(gains: Sequence[float], seconds: Sequence[float], rate: float) -> Choice:
    """The n for which the first n gains less `rate` × `seconds[n]` are most; the least such n.

    `seconds[0]` is the price of taking none; n is at most `len(seconds) - 1`.
    """
    best, value, total = 0, -rate * seconds[0], 0.0
    for count, gain in enumerate(gains[: len(seconds) - 1], 1):
        total += gain
        if total - rate * seconds[count] > value:
            best, value = count, total - rate * seconds[count]
    return Choice(best, value)


def best_budget(
    chances: Sequence[float], seconds: Sequence[float], rate: float, kept: float = 1.0
) -> Choice:
    """How many of the most probable paths the target should score.

    `chances` are the paths' probabilities, best first, so n nodes are expected to emit their sum
    and the bonus; `kept` is the share of that sum that comes true of late. `seconds[n]` is the
    target's pass over n nodes and the anchor.
    """
    choice = best_count(chances, seconds, rate / kept)
    return Choice(choice.count, 1 + kept * choice.value)


def second_rows(
    masses: Sequence[float], lift: float, seconds: Sequence[float], rate: float
) -> Choice:
    """How many rows a second pass should redraft; 0: no second pass.

    `masses` are the anchors' gains, largest first: the probability that the truth passes where
    the row begins. `lift` is what a row of mass 1 adds in tokens; `seconds[n]` the pass of n rows.
    """
    return best_count([lift * mass for mass in masses], seconds, rate)


@dataclass(slots=True)
class Probes:
    """Time for trying what does not seem to pay: never more than `share` of all time so far."""

    share: float = 0.005
    elapsed: float = 0.0
    spent: float = 0.0

    def take(self, seconds: float) -> bool:
        """True, and the time is booked, when there is enough left."""
        if self.spent + seconds > self.share * self.elapsed:
            return False
        self.spent += seconds
        return True


LEVELS = (0.5, 2.0, 4.0)
"""Copied tokens expected without a pass, where what a pass adds is learned apart."""


@dataclass
class Estimates:
    """What decoding has shown so far; `plain_seconds` is a step of plain decoding.

    Priors are such that everything is tried: a pass that never pays is soon found out, and the
    tries cost a few tokens' time once.
    """

    plain_seconds: float
    hits: HitRates = field(default_factory=HitRates)
    probes: Probes = field(default_factory=Probes)

    def __post_init__(self) -> None:
        self.rate = Average(4.0, 4.0 * self.plain_seconds, memory=64)
        """Tokens a second."""
        self.trust = [Average(4.0, 4.0, memory=512) for _ in range(2)]
        """Of each pass: how often its best token comes true, over how sure it was."""
        self.kept = [Average(4.0, 4.0, memory=256) for _ in range(2)]
        """Accepted over predicted tokens, of trees without and with a pass."""
        self.slowness = [Average(4.0, 4.0) for _ in range(3)]
        """Measured over predicted seconds: target, first pass, second pass."""
        self.gain = [Average(1.0, 1.0, memory=64) for _ in range(len(LEVELS) + 1)]
        """Tokens' worth that a first pass adds before its own price, by level."""
        self.lift = Average(2.0, 2.0)
        """Tokens' worth that a second pass adds before its price, for anchors of mass 1."""

    def trusted(self, number: int) -> float:
        """What the probabilities of pass `number` (0 or 1) are to be multiplied by."""
        return self.trust[number].within(0.05, 1.2)

    def kept_share(self, drafted: bool) -> float:
        return self.kept[drafted].within(0.5, 1.5)

    def slow(self, part: int) -> float:
        """What the table's seconds are to be multiplied by: target 0, first pass 1, second 2."""
        return self.slowness[part].within(0.25, 4.0)

    def level(self, copied: float) -> Average:
        """Of `gain`, for steps in which `copied` tokens are expected without a pass."""
        return self.gain[sum(copied >= least for least in LEVELS)]

    def skipped_first(self, copied: float) -> None:
        """A step was made without a pass: what is known of passes grows old."""
        self.level(copied).age()
        for average in (self.trust[0], self.kept[True]):
            average.age(least=2.0)
        self.skipped_second()

    def skipped_second(self) -> None:
        """A step was made without a second pass."""
        self.lift.age()
        self.trust[1].age(least=2.0)
