"""Drafts as much as pays, and in the way that pays: the planner at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from d2sd.costs import CostTable
from d2sd.drafters.best_first import FEW, RankedPaths, RankedRow, Slot, ranked_paths, ranked_rows
from d2sd.drafters.copied import named, spliced
from d2sd.drafters.hits import LONGEST
from d2sd.drafters.merged import merged_slots, second_source, weighed_anchors
from d2sd.drafters.ngram import Copy, Ngrams
from d2sd.drafters.planner import (
    Choice,
    Estimates,
    best_budget,
    second_rows,
)
from d2sd.drafters.proposer import Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import Chain, TokenTree

Clock = Callable[[], float]
"""Seconds from any beginning."""

TRIED_LIFT = 1.0
"""Tokens that rows of mass 1 are taken to add when a second pass is only tried."""


@dataclass(frozen=True)
class Bounds:
    """What a plan may use at most: drafted nodes, rows of a second pass; and which anchors."""

    budget: int = 64
    branches: int = 4
    anchors: str = "mixed"
    block_size: int | None = None


class PlannedDrafter(Drafter):
    """Plain decoding, copies, one pass or both, and a tree of the size that pays: step by step.

    `proposers` are none, the first, or the first and the second. `costs` must hold a table for
    each. With a `clock` the table is corrected by the steps' measured times; without one it is
    believed. What was learned of rates and times outlasts a sequence.
    """

    def __init__(
        self,
        proposers: Sequence[Proposer],
        costs: CostTable,
        bounds: Bounds = Bounds(),
        clock: Clock | None = time.perf_counter,
    ) -> None:
        for table, name in zip((costs.first, costs.second), _NAMES[: len(proposers)], strict=False):
            if not table:
                raise ValueError(
                    f"the cost table has no times of the {name} drafter; run d2sd tune again"
                )
        self._proposers = list(proposers)
        self._costs, self._bounds, self._clock = costs, bounds, clock
        self._estimates = Estimates(costs.target_seconds(1, costs.contexts[0]) + costs.overhead)
        self._ngrams = Ngrams()
        self._last: _Step | None = None

    def draft(self, context: Context) -> TokenTree:
        now = self._clock() if self._clock else 0.0
        self._learn(context.tokens, now)
        copy = self._ngrams.copy(context.tokens, self._bounds.budget, LONGEST)
        step = _Step(context, copy, self._target_seconds(context.committed), now)
        option = self._option(step, [])
        gain = self._estimates.level(option.predicted)
        if self._proposers and self._first_pays(step, gain.value):
            before = option.choice.value
            option = self._drafted(step)
            gain.add(option.choice.value - self._rate * step.seconds[2] - before)
        else:
            self._estimates.skipped_first(option.predicted)
        step.option = option
        self._last = step
        return option.tree(context.anchor, copy)

    @property
    def _rate(self) -> float:
        return self._estimates.rate.value

    def _target_seconds(self, context: int) -> list[float]:
        """Of the target's pass over 0, 1, … drafted nodes, as the machine is of late."""
        row = self._costs.target_row(context)
        most = self._bounds.budget + 1
        more = [self._costs.target_seconds(n, context) for n in range(len(row) + 1, most + 1)]
        slow = self._estimates.slow(0)
        return [slow * seconds for seconds in (*row[:most], *more)]

    def _option(self, step: _Step, rows: Sequence[RankedRow]) -> _Option:
        """The best tree from what is known: copies, and the rows of one pass or both."""
        start = merged_slots(rows) if rows else None
        joined = spliced(start, step.copy, self._estimates.hits)
        paths = ranked_paths(joined.start, self._bounds.budget)
        kept = self._estimates.kept_share(bool(rows))
        choice = best_budget(paths.chances, step.target, self._rate, kept)
        chain = rows[0].chain if rows else None
        return _Option(start, paths, choice, joined.opinions, chain)

    def _first_pays(self, step: _Step, gain: float) -> bool:
        """Whether a pass is expected to add more than it costs; now and then a try."""
        seconds = self._pass_seconds(0, step.context.committed, 1)
        return gain > self._rate * seconds or self._estimates.probes.take(seconds)

    def _drafted(self, step: _Step) -> _Option:
        [first] = self._rows(step, 0, [()], ["first"])
        option = self._option(step, [first])
        if len(self._proposers) < 2:
            return option
        weighed = weighed_anchors(self._bounds.anchors, first, self._bounds.branches)
        masses = [mass for mass, _ in weighed]
        count = self._second_count(step, masses)
        if not count:
            self._estimates.skipped_second()
            return option
        kept = [tokens for _, tokens in weighed[:count]]
        second = self._rows(step, 1, kept, [second_source(first, tokens) for tokens in kept])
        both = self._option(step, [first, *second])
        rise = both.choice.value - option.choice.value
        self._estimates.lift.add(rise, max(sum(masses[:count]), 1e-6))
        return both

    def _second_count(self, step: _Step, masses: Sequence[float]) -> int:
        rows = range(1, len(masses) + 1)
        committed = step.context.committed
        seconds = [0.0, *(self._pass_seconds(1, committed, count) for count in rows)]
        lift = self._estimates.lift.value
        if count := second_rows(masses, lift, seconds, self._rate).count:
            return count
        tried = max(second_rows(masses, TRIED_LIFT, seconds, self._rate).count, min(1, len(masses)))
        return tried if tried and self._estimates.probes.take(seconds[tried]) else 0

    def _rows(
        self,
        step: _Step,
        number: int,
        kept: Sequence[tuple[int, ...]],
        sources: Sequence[str],
    ) -> list[RankedRow]:
        """A pass, its probabilities corrected by how far they came true before."""
        before = self._clock() if self._clock else 0.0
        visible = [(step.context.anchor, *tokens) for tokens in kept]
        size = self._bounds.block_size or self._proposers[0].block_size
        proposal = self._proposers[number].propose(step.context, visible, size)
        candidates = proposal.top(max(FEW, self._bounds.branches + 1))
        rows = ranked_rows(candidates, kept, sources)
        expected = self._pass_seconds(number, step.context.committed, len(kept))
        step.seconds[1 + number] = expected
        if self._clock:
            step.seconds[1 + number] = min(self._clock() - before, OUTLIER * expected)
            slow = self._estimates.slow(1 + number)
            self._estimates.slowness[1 + number].add(step.seconds[1 + number] * slow / expected)
        trust = step.trust[number] = self._estimates.trusted(number)
        return [replace(row, probs=_scaled(row.probs, trust)) for row in rows]

    def _pass_seconds(self, number: int, context: int, rows: int) -> float:
        table = self._costs.second_seconds if number else self._costs.first_seconds
        return self._estimates.slow(1 + number) * table(context, rows)

    def _learn(self, tokens: tuple[int, ...], now: float) -> None:
        """What the last step's tokens and time say of what was expected of it."""
        last, self._last = self._last, None
        if last is None or not last.led_to(tokens):
            return
        emitted = tokens[len(last.context.tokens) :]
        self._learn_times(last, len(emitted), now)
        self._learn_hits(last, emitted)
        self._learn_trust(last, emitted)
        self._estimates.kept[last.drafted].add(float(len(emitted) - 1), last.option.predicted)

    def _learn_times(self, last: _Step, emitted: int, now: float) -> None:
        expected = last.target[last.option.choice.count]
        passes = last.seconds[1] + last.seconds[2] + self._costs.overhead
        seconds = expected
        if self._clock:
            seconds = min(max(now - last.started - passes, 0.0), OUTLIER * expected)
            slow = self._estimates.slow(0)
            self._estimates.slowness[0].add(seconds * slow / expected)
        self._estimates.rate.add(float(emitted), passes + seconds)
        self._estimates.probes.elapsed += passes + seconds

    def _learn_hits(self, last: _Step, emitted: Sequence[int]) -> None:
        pairs = zip(last.copy.tokens, emitted, last.option.opinions, strict=False)
        for depth, (token, truth, opinion) in enumerate(pairs):
            self._estimates.hits.add(last.copy.matched + depth, opinion, token == truth)
            if token != truth:
                return

    def _learn_trust(self, last: _Step, emitted: Sequence[int]) -> None:
        slot = last.option.start
        for truth in emitted:
            if slot is None:
                return
            number = int(slot.source != "first")
            certain = slot.probs[0] / last.trust[number]
            self._estimates.trust[number].add(float(slot.tokens[0] == truth), certain)
            if truth not in slot.tokens:
                return
            slot = slot.redrafted.get(truth, slot.rest)


_NAMES = ("first", "second")

OUTLIER = 3.0
"""A measured time counts as at most this many times the expected one: somebody may have paused."""


@dataclass(frozen=True)
class _Option:
    """A tree that could be scored: its slots without copies, its paths, how many of them pay."""

    start: Slot | None
    paths: RankedPaths
    choice: Choice
    opinions: tuple[float | None, ...]
    chain: Chain | None

    @property
    def predicted(self) -> float:
        """Tokens expected to be accepted, by the paths' probabilities."""
        return sum(self.paths.chances[: self.choice.count], 0.0)

    def tree(self, anchor: int, copy: Copy) -> TokenTree:
        tree = named(self.paths, copy, self.start).tree(anchor, self.choice.count)
        return tree.drafted_from(self.chain)


@dataclass
class _Step:
    """A step as it was planned, kept until its tokens are known."""

    context: Context
    copy: Copy
    target: Sequence[float]
    started: float
    option: _Option = field(init=False)
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    trust: list[float] = field(default_factory=lambda: [1.0, 1.0])

    @property
    def drafted(self) -> bool:
        return self.option.start is not None

    def led_to(self, tokens: tuple[int, ...]) -> bool:
        """Whether `tokens` can be what this step made of its context."""
        before = self.context.tokens
        new = len(tokens) - len(before)
        return 1 <= new <= self.option.choice.count + 1 and tokens[: len(before)] == before


def _scaled(probs: list[list[float]], trust: float) -> list[list[float]]:
    if trust == 1:
        return probs
    return [[min(1.0, trust * prob) for prob in slot] for slot in probs]
