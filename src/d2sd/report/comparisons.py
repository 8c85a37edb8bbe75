"""Two contenders against each other: ratios, and whether their intervals leave room for chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from d2sd.bench.results import Interval, Mean, Means, Row, Section
from d2sd.report.tables import BASELINE

Found = Row | Mean
ENOUGH_PROMPTS = 5
"""Of fewer prompts a bootstrap's interval is too narrow to decide anything."""
EQUAL_NODES = 0.1
"""Trees whose sizes differ by less than this share count as equal."""
PAPER_BRANCHES = "4"


@dataclass(frozen=True)
class Ratio:
    """One figure over another. `apart`: chance in the choice of prompts doesn't explain it.

    `chance` says why, or why not. It is judged by the ratio's own interval where both were drawn
    on the same prompts, else by whether both figures' intervals overlap.
    """

    ours: float
    theirs: float
    apart: bool
    chance: str

    @property
    def value(self) -> float:
        return self.ours / self.theirs

    @property
    def is_gain(self) -> bool:
        return self.apart and self.value > 1

    @property
    def is_loss(self) -> bool:
        return self.apart and self.value < 1


@dataclass(frozen=True)
class Comparison:
    """`ours` against `theirs`; `speed` is of speed-ups, None where there are none."""

    ours: str
    theirs: str
    acceptance: Ratio
    speed: Ratio | None
    nodes: tuple[float, float]

    @property
    def has_equal_nodes(self) -> bool:
        ours, theirs = self.nodes
        return abs(ours - theirs) <= EQUAL_NODES * max(ours, theirs)


def compare(found: Means | Section, ours: str, theirs: str) -> Comparison:
    """Both of them must be among the rows."""
    here, there = found.rows[ours], found.rows[theirs]
    paired = found.against.get(ours, {}).get(theirs) if isinstance(found, Means) else None
    length, ratio = (None, None) if paired is None else (paired.acceptance_length, paired.speed)
    few = found.prompts if found.prompts < ENOUGH_PROMPTS else None
    speed = None
    if here.speedup is not None and there.speedup is not None:
        speed = _ratio(here.speedup, there.speedup, ratio, few)
    return Comparison(
        ours,
        theirs,
        _ratio(here.acceptance_length, there.acceptance_length, length, few),
        speed,
        (here.nodes_per_step, there.nodes_per_step),
    )


def family(name: str) -> str:
    """The policy without its options."""
    return name.partition(":")[0]


def option(name: str, key: str) -> str | None:
    """The value of an option given inline, as in `dual:branches=4`."""
    pieces = name.partition(":")[2].replace(",", ":").split(":")
    given = dict(piece.partition("=")[::2] for piece in pieces if piece)
    return given.get(key)


def variants(names: Iterable[str], of: str) -> list[str]:
    """The names that are one policy, with whatever options."""
    return [name for name in names if family(name) == of]


def plainest(names: Iterable[str], of: str) -> str | None:
    """The variant that stands for a policy: without options, the only one, or the paper's."""
    found = variants(names, of)
    if of in found:
        return of
    if len(found) == 1:
        return found[0]
    return next((name for name in found if option(name, "branches") == PAPER_BRANCHES), None)


def nearest(rows: Mapping[str, Found], name: str, of: str) -> str | None:
    """The variant of policy `of` whose trees are closest in nodes to those of `name`."""
    nodes = rows[name].nodes_per_step
    found = variants(rows, of)
    return min(found, key=lambda one: abs(rows[one].nodes_per_step - nodes), default=None)


def at_equal_nodes(means: Means, of: str, control: str) -> list[Comparison]:
    """Every variant of a policy against the control's that is closest in nodes."""
    pairs = [(name, nearest(means.rows, name, control)) for name in variants(means.rows, of)]
    return [compare(means, name, other) for name, other in pairs if other is not None]


def best(rows: Mapping[str, Found], among: Iterable[str]) -> str | None:
    """The fastest over plain decoding."""
    known = [n for n in among if n in rows and n != BASELINE and rows[n].speedup is not None]
    return max(known, key=lambda name: _speed(rows[name]), default=None)


def _speed(row: Found) -> float:
    assert row.speedup is not None
    return row.speedup.value


def _ratio(ours: Interval, theirs: Interval, paired: Interval | None, few: int | None) -> Ratio:
    if few is not None:
        words = f"{few} prompt{'s' * (few > 1)} a suite are too few to tell"
        return Ratio(ours.value, theirs.value, False, words)
    if paired is not None:
        words = f"ratio between {paired.low:.2f} and {paired.high:.2f}"
        return Ratio(ours.value, theirs.value, not paired.low <= 1 <= paired.high, words)
    apart = ours.low > theirs.high or ours.high < theirs.low
    words = "intervals apart" if apart else "intervals overlap"
    return Ratio(ours.value, theirs.value, apart, words)
