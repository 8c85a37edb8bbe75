"""How much a whole batch should draft: the planner's rule with costs learned while serving.

The rule is that of `d2sd.drafters.planner`: whoever always takes the step worth most at the going
rate of tokens a second reaches the best rate. A batch has one pass and one rate, so the nodes of
all its trees compete for the same seconds. Requests come and go, and each number of them has a
rate of its own: it is worked out from what passes cost and what a request's tree has promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from d2sd.drafters.hits import Average
from d2sd.drafters.planner import Choice, Probes, best_budget, second_rows
from d2sd.engines.batches.experience import FEW, SHARE, Experience
from d2sd.engines.batches.prices import ONCE, OUTLIER, STAIR, Line, stair


@dataclass
class Promise:
    """What one request's tree was expected to bring of late: its nodes' chances, best first."""

    weight: float = 0.0
    sums: list[float] = field(default_factory=list)

    def add(self, chances: Sequence[float]) -> None:
        """A tree of these paths was drafted."""
        kept = 1 - 1 / REMEMBERED
        self.weight = kept * self.weight + 1
        self.sums += [0.0] * (len(chances) - len(self.sums))
        more = [*chances, *[0.0] * (len(self.sums) - len(chances))]
        self.sums = [kept * old + new for old, new in zip(self.sums, more, strict=True)]

    def age(self) -> None:
        """It may be another text by now: what is new counts for more."""
        if self.weight > 2 * TRIED:
            self.sums = [value / 2 for value in self.sums]
            self.weight /= 2

    @property
    def chances(self) -> list[float]:
        """Of the best node, of the next, …"""
        return [value / self.weight for value in self.sums]


REMEMBERED = 64
SOME = 0.05
"""Redrafted rows a request below which steps go without a second pass."""
TRIED = 8
"""Trees that are drafted before anything is decided by what they promised."""
AGAIN = 8
"""Steps for which drafting is refused at a time."""
CLEARLY, STILL = 1.05, 1.0
"""Times the plain rate that drafting must promise to be begun, and to go on: who begins has all the
text to read that nobody drafted from."""


@dataclass
class Pace:
    """What serving has shown so far of passes, of trees, and of drafts that came true."""

    target: Line = field(default_factory=Line)
    """The target's passes without forks: plain steps, and chains as the engine reads them."""
    plain: Line = field(default_factory=Line)
    """Those of plain steps alone: they may be few beside the others."""
    forks: Average = field(default_factory=lambda: Average(0.0, 1.0, memory=REMEMBERED))
    """Seconds that a pass takes longer for each request with a tree that has forks."""
    prompts: Average = field(default_factory=lambda: Average(0.0, 1.0, memory=REMEMBERED))
    """Seconds that a pass takes longer for each row of a prompt that it reads."""
    widest: int = 0
    """Most rows of any pass so far."""
    passes: tuple[Line, Line] = field(default_factory=lambda: (Line(), Line()))
    between: tuple[Average, Average] = field(
        default_factory=lambda: (Average(0.0, 1.0), Average(0.0, 1.0))
    )
    """Seconds of a step outside the networks: of a plain one, and of one with drafts."""
    promise: Promise = field(default_factory=Promise)
    straight: Promise = field(default_factory=Promise)
    """The same of the chain that a first pass alone gives."""
    again: Average = field(default_factory=lambda: Average(0.0, 1.0, memory=REMEMBERED))
    """Rows that a second pass redrafts for each request."""
    kept: Average = field(default_factory=lambda: Average(4.0, 4.0, memory=256))
    """Accepted over predicted tokens."""
    lift: Average = field(default_factory=lambda: Average(2.0, 2.0))
    """Tokens' worth that a second pass adds before its price, for anchors of mass 1."""
    probes: Probes = field(default_factory=lambda: Probes(SHARE))
    experiences: dict[int, Experience] = field(default_factory=dict)
    """By the size of the batch, sizes growing twofold: what many requests lose isn't made up for by
    what one gains."""
    asked: int = 0
    _requests: int = 0
    """That were asked for last: who decided to draft answers for it, whoever came since."""
    _drafting: float = 0.0
    _for_all: bool = False
    """Whether the last drafts were more than a try."""
    _forked: set[tuple[int, int]] = field(default_factory=set)
    _new_size: bool = False
    """Whether the last pass was the first one of its size."""
    _decoded: float = 0.0
    """Seconds of the last pass, but for the prompts it read."""
    _once: float = 0.0
    """Seconds that the last step took longer outside the networks than such steps do: text may have
    been read that nobody had drafted from."""
    _refused: tuple[int, int] = (0, 0)
    """From how many requests on drafting does not pay, and up to which step that holds."""
    _goes_on: bool = False

    def scored(self, rows: int, forked: int, seconds: float, prompts: int = 0) -> None:
        """A pass of the target took so long; so many of its requests had trees with forks.

        `rows` are those of trees; it read so many rows of `prompts` besides.
        """
        self._once = 0.0
        if prompts:
            self._read_prompts(rows, prompts, seconds)
            return
        self.widest = max(self.widest, rows)
        self._new_size, self._decoded = (rows, forked) not in self._forked, seconds
        if not self._drafting:
            self.plain.add(rows, seconds)
        if not forked:
            self.target.add(rows, seconds)
        elif not self._new_size:
            self.forks.add(seconds - self.target.at(rows), float(forked))
        self._forked.add((rows, forked))  # as of lines, the first of a size isn't counted

    def _read_prompts(self, rows: int, prompts: int, seconds: float) -> None:
        """Drafts' passes are taken as foreseen until a prompt's price was seen without drafts."""
        plain = self._plain(rows)
        if plain and not self._drafting:
            self.prompts.add(max(seconds - plain, 0.0), float(prompts))
        decoded = max(seconds - prompts * self.prompts.value, plain)
        known = self.prompts.total > 0.0
        self._new_size, self._decoded = False, decoded if known else self.target.at(rows)

    def stepped(self, requests: int, target: float, seconds: float) -> None:
        """A step of decoding took so long in all, the target's pass `target` of it."""
        rest = seconds - target - self._drafting
        between = self.between[self._drafting > 0]
        rest = min(max(rest, 0.0), OUTLIER * target)  # an engine may have slept
        between.add(rest)
        self._once = rest - between.value
        if not self._drafting and not self._new_size:
            expected = self._plain(requests) + between.value
            self.experience(requests).stepped(min(seconds, OUTLIER * expected) / expected)
        self.probes.elapsed += seconds

    def compared(self, requests: int, rows: int, forked: int, accepted: int) -> None:
        """The last pass was of drafts, and what was accepted of them is experience."""
        if not self._for_all or not self._drafting:
            return
        expected = self.target.at(rows) + self._price(forked)
        most = (ONCE if self._new_size else OUTLIER) * expected
        spent = self._drafting + min(self._decoded, most) + self._between[1]
        plain, drafted = self._foreseen(requests)
        if requests != self._requests:  # some came too late: that isn't what was foreseen
            drafted = 0.0
        known, emitted = self.experience(self._requests), requests + accepted
        known.drafted(requests, emitted, spent, (plain, drafted), self._once)

    def came_true(self, accepted: int, predicted: float) -> None:
        """So many drafted tokens were accepted where so many were expected."""
        self.kept.add(float(accepted), predicted)

    def experience(self, requests: int) -> Experience:
        """Of batches about as large."""
        size = requests.bit_length()
        return self.experiences.setdefault(size, Experience(1 << max(size - 1, 0)))

    def rates(self, requests: int) -> tuple[float, float]:
        """Tokens a second of so many requests: plain, and with the best drafts to be expected."""
        plain, drafted = self._foreseen(requests)
        known = self.experience(requests)
        return plain / known.plain.value, drafted * known.brought.value

    def _foreseen(self, requests: int) -> tuple[float, float]:
        """The same by what passes cost and trees promise."""
        without, with_drafts = self._between
        plain = self._plain(requests) + without
        drafting = with_drafts + self.passes[0].at(requests)
        again = self.again.value if self.again.value > SOME else 0.0
        second = self.passes[1].at(round(again * requests)) if again else 0.0
        return requests / max(plain, 1e-6), max(
            self._best(requests, self.straight, drafting),
            self._best(requests, self.promise, drafting + second + self._price(requests)),
        )

    @property
    def _between(self) -> tuple[float, float]:
        without, with_drafts = (kind.value for kind in self.between)
        return without, max(with_drafts, without)  # few may have been seen, with fewer requests

    def _plain(self, requests: int) -> float:
        """Seconds of a plain step's pass."""
        return (self.plain if self.plain.weight else self.target).at(requests)

    def _price(self, requests: int) -> float:
        """Of forks, in seconds."""
        return max(requests * self.forks.value, 0.0)

    def _best(self, requests: int, promise: Promise, price: float) -> float:
        emitted, best = float(requests), 0.0
        for nodes, chance in enumerate(promise.chances, 1):
            emitted += requests * chance * self._share
            seconds = price + self.target.at(stair(requests * (1 + nodes)))
            best = max(best, emitted / max(seconds, 1e-6))
        return best

    @property
    def _share(self) -> float:
        return self.kept.within(0.5, 1.5)

    def first_count(self, requests: int, prompts_next: bool = False) -> int:
        """For how many requests to draft: for all, where that pays; else now and then for one, to
        know when it does, and for a few at the beginning. Now and then for none, to know what plain
        steps take, and for none where the next pass is likely to read prompts: what drafts cost
        there can't be told from what prompts do."""
        self.asked += 1
        self._requests, self._drafting = requests, 0.0
        if prompts_next:
            return 0
        if not self.target.weight or self.experience(requests).wants_plain():
            return 0
        if self.promise.weight < TRIED or self.passes[0].weight < TRIED / 2:
            self._for_all = requests <= FEW
            return min(requests, FEW)
        self._for_all = self.experience(requests).tries() or self._pays(requests)
        if self._for_all:
            return requests
        if not self.probes.take(self.passes[0].at(1) + self.target.at(requests)):
            return 0
        self.promise.age()
        self.straight.age()
        return 1

    def _pays(self, requests: int) -> bool:
        """A no holds for some steps, and for more requests: working it out costs time as well."""
        least, until = self._refused
        if self.experience(requests).given_up or (requests >= least and self.asked < until):
            return False
        plain, drafted = self.rates(requests)
        pays = drafted > (STILL if self._goes_on else CLEARLY) * plain
        self._goes_on = pays
        self._refused = (0, 0) if pays else (requests, self.asked + AGAIN)
        return pays

    def second_count(self, masses: Sequence[float], asked: int, requests: int) -> int:
        """How many rows a second pass should redraft, of anchors with these gains, best first.

        `asked` of the requests have a first draft.
        """
        seconds = [0.0, *(self.passes[1].at(count) for count in range(1, len(masses) + 1))]
        count = second_rows(masses, self.lift.value, seconds, max(self.rates(requests))).count
        if count == 0:
            self.lift.age()
            count = len(masses) if self.probes.take(seconds[-1]) else 0
        self.again.add(float(count), float(asked))
        return count

    def budget(self, chances: Sequence[float], requests: int, forked: int) -> Choice:
        """How many of all requests' most probable paths the target should score.

        `forked` requests would have trees with forks.
        A pass is at most twice as wide as any before it: beyond that its price is a guess. Nodes up
        to the next stair are free, so passes have few sizes.
        """
        forks = self._price(forked)
        most = min(len(chances), 2 * max(self.widest, STAIR, requests) - requests)
        wide = [self.target.at(stair(requests + n)) + forks for n in range(1, most + 1)]
        seconds = [self._plain(requests), *wide]
        return best_budget(chances[:most], seconds, max(self.rates(requests)), self._share)

    def drafted(
        self,
        trees: Sequence[Sequence[float]],
        chains: Sequence[Sequence[float]],
        seconds: float,
    ) -> None:
        """Drafting took so long in all and found trees and chains of these chances.

        What was not the second pass's time is booked as the first one's.
        """
        self.passes[0].add(len(trees), seconds - self._drafting)
        self._drafting = seconds
        for promise, found in ((self.promise, trees), (self.straight, chains)):
            for chances in found:
                promise.add(chances)

    def redrafted(self, rows: int, seconds: float) -> None:
        """A second pass over so many rows took so long."""
        self.passes[1].add(rows, seconds)
        self._drafting = seconds

    def lifted(self, rise: float, mass: float) -> None:
        """A second pass whose anchors have this mass raised a step's worth by so much."""
        self.lift.add(rise, max(mass, 1e-6))
