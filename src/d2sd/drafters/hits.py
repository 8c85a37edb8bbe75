"""How often copied tokens come true: rates and a regression that go on learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 16
"""Suffixes that match for longer are as good as this."""


AGEING = 64
"""Steps after which evidence that was not renewed counts a third."""


@dataclass(slots=True)
class Average:
    """What a unit gave of late: two sums that forget, with `memory` additions in mind.

    What it is created with is the prior: `units` of them worth `total`.
    """

    total: float
    units: float
    memory: int = 32

    def add(self, total: float, units: float = 1.0) -> None:
        kept = 1 - 1 / self.memory
        self.total = kept * self.total + total
        self.units = kept * self.units + units

    def age(self, least: float = 1.0) -> None:
        """A step passed without an addition: old evidence counts less, down to `least` units."""
        if self.units > least:
            kept = max(1 - 1 / AGEING, least / self.units)
            self.total, self.units = kept * self.total, kept * self.units

    @property
    def value(self) -> float:
        return self.total / self.units

    def within(self, least: float, most: float) -> float:
        return min(max(self.total / self.units, least), most)


class HitRates:
    """How often a copied token is right: alone, and where a pass has an opinion of it.

    Alone by how long its suffix matched. The prior's shape is that of SmolLM2's greedy answers:
    26 % after one matching token, 59 % after two, 71 % after four, 83 % after eight, 98 % after
    sixteen. With a pass, the log-odds of that rate and of the pass's probability are weighed by a
    regression, whose first weights are fitted to the same answers: there the copy says more than
    the pass.
    """

    def __init__(self, weight: float = 4.0, memory: int = 64) -> None:
        rates = [1 - 0.75 * length**-0.8 for length in range(1, LONGEST + 1)]
        self._rates = [Average(weight * rate, weight, memory) for rate in rates]
        self._both = Regression((0.3, 1.1, 0.5))

    def chance(self, matched: int, opinion: float | None = None) -> float:
        """Of a token after `matched` matching ones that a pass gives probability `opinion`."""
        rate = self._rates[min(matched, LONGEST) - 1].value
        return rate if opinion is None else self._both.chance(_features(opinion, rate))

    def add(self, matched: int, opinion: float | None, hit: bool) -> None:
        """A token that was judged: everything before it had come true."""
        rates = self._rates[min(matched, LONGEST) - 1]
        if opinion is not None:
            self._both.add(_features(opinion, rates.value), hit)
        rates.add(float(hit))


def _features(opinion: float, rate: float) -> tuple[float, float, float]:
    return _log_odds(opinion), _log_odds(rate), 1.0


def _log_odds(chance: float) -> float:
    bounded = min(max(chance, 0.002), 0.998)
    return math.log(bounded / (1 - bounded))


class Regression:
    """Logistic regression, one observation at a time; its weights are taken to drift.

    The extended Kalman filter of a logistic model: `spread` is how uncertain each first weight is
    (a variance), `drift` how much of that comes back with every observation.
    """

    def __init__(self, weights: Sequence[float], spread: float = 0.3, drift: float = 0.001) -> None:
        self._weights = list(weights)
        self._drift = drift
        self._spread = [[spread * (i == j) for j in _range(weights)] for i in _range(weights)]

    def chance(self, features: Sequence[float]) -> float:
        """That an observation with these features is true."""
        return 1 / (1 + math.exp(-_product(self._weights, features)))

    def add(self, features: Sequence[float], truth: bool) -> None:
        chance = self.chance(features)
        pull = [_product(row, features) for row in self._spread]
        doubt = max(chance * (1 - chance), 0.01)
        whole = 1 + doubt * _product(pull, features)
        for i, row in enumerate(self._spread):
            self._weights[i] += (truth - chance) * pull[i] / whole
            for j in _range(row):
                row[j] += self._drift * (i == j) - doubt * pull[i] * pull[j] / whole


def _product(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _range(values: Sequence[object]) -> range:
    return range(len(values))
