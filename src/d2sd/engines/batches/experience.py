"""What drafting really brought a batch: it corrects what was foreseen, and ends what loses.

A rate that was worked out can be wrong: its prices were learned with fewer requests, its chances do
not hold together, somebody's prompt was still to be read. The seconds a step took and the tokens
it emitted can't be. So every step that drafted for all requests is compared with what was foreseen
and with a plain step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from d2sd.drafters.hits import Average

SHARE = 0.0025
"""Of the time that drafting may lose in the long run."""
FEW = 4
"""Requests up to which a step counts as one; one with more shows as many times more trees, so as
many times fewer steps are enough to judge by."""
MOST = 16.0
"""Plain steps' worth that it may be behind: some sentences' drafts don't come true."""
DEAREST = 8.0
"""Plain steps' worth that one step counts for at most: something may be slow once."""
SAVED = 32.0
"""Plain steps' worth of gains that stand against losses."""
TRIAL = 8
"""Steps for which drafting is tried, whatever is foreseen."""
PAUSE = 256
"""Steps without drafts before it is tried again."""
SOON = 32
"""The same, as long as gains can pay for it."""
OFTEN, SELDOM = 4, 64
"""Drafted steps from one plain step to the next, which they are compared with: at first, and at
most, for what a plain step of this size takes is soon known, and may change."""


@dataclass
class Experience:
    """Of drafting for about one number of requests. A plain step's time is the unit of losses.

    `requests` are the fewest that count as about as many.
    """

    requests: int = 1
    plain: Average = field(default_factory=lambda: Average(1.0, 1.0, memory=16))
    """Seconds of plain steps, over what they were expected to take."""
    brought: Average = field(default_factory=lambda: Average(4.0, 4.0, memory=32))
    """Tokens of drafted steps, over those foreseen for the time they took."""
    behind: float = 0.0
    """What drafting has lost; less than nothing, where it has gained."""
    given_up: bool = False
    """From a loss of `MOST` until the time that may be lost has paid for it."""
    _trial: int = 0
    _paused: int = PAUSE
    _since: int = 0
    """Drafted steps after the last plain one."""
    _gap: int = 0
    _waited: int = 0
    """Questions since a plain step is due."""

    def wants_plain(self) -> bool:
        """Whether a plain step is due: before the first drafted one, and ever more seldom after.

        Not for long, though: where all passes read prompts none can be compared with.
        """
        self._waited = self._waited + 1 if self._since >= self._gap else 0
        return 0 < self._waited <= OFTEN

    def stepped(self, slowness: float) -> None:
        """A plain step took so many times as long as expected."""
        self.plain.add(slowness)
        if self._since >= self._gap:
            self._gap = min(max(2 * self._gap, OFTEN), SELDOM)
        self._since = 0

    def tries(self) -> bool:
        """Whether to draft in this step although it doesn't seem to pay.

        Once at the beginning, then after a pause, as long as nothing is lost that isn't paid for.
        """
        if self._paused:  # who begins again may find the machine changed
            self._gap = min(self._gap, OFTEN)
        self._paused += 1
        if self.behind > 0.0:
            self._fall(min(SHARE, self.behind / self._weight))  # that is no gain
        enough = SOON if self.behind < 0.0 else PAUSE
        if self._paused > enough and self.behind <= 0.0:
            self._trial, self._paused = math.ceil(TRIAL / self._weight), 0
        self._trial -= 1
        return self._trial >= 0 and not self.given_up

    def drafted(
        self,
        requests: int,
        emitted: int,
        spent: float,
        rates: tuple[float, float],
        once: float = 0.0,
    ) -> None:
        """A drafted step emitted so many tokens of so many requests and took `spent` seconds.

        `rates` were foreseen, in tokens a second: of plain steps, and of drafted ones. `once` are
        seconds besides that going on would not take again: they are lost, but teach nothing.
        """
        self._paused = 0
        self._since += 1
        plain, with_drafts = rates
        if with_drafts > 0.0:
            each = self._weight / requests
            self.brought.add(emitted * each, max(with_drafts * spent, 1e-6) * each)
        steps = (spent + once) * plain / (requests * self.plain.value)
        self._fall(emitted / requests - min(steps, DEAREST))
        self.given_up = self.given_up or self.behind > MOST

    @property
    def _weight(self) -> float:
        """Of one step."""
        return max(self.requests / FEW, 1.0)

    def _fall(self, steps: float) -> None:
        self.behind = max(self.behind - steps * self._weight, -SAVED)
        self.given_up = self.given_up and self.behind > 0.0
