"""What the engine's steps teach the planner: how long they took, and which drafts came true."""

from __future__ import annotations

import time
from collections.abc import Callable

from d2sd.engines.batches.placement import Placement, PlainPass
from d2sd.engines.batches.plan import BatchDrafter


class StepClock:
    """Times passes, and whole steps where they only decode."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._begun = 0.0
        self._last: float | None = None

    def started(self) -> None:
        """The inputs of a step lie ready."""
        self._begun = self._now()

    def scored(self, placement: Placement | PlainPass, drafter: BatchDrafter) -> None:
        """The target's pass was walked."""
        pace, now = drafter.pace, self._now()
        if pace is not None:
            requests, forked = len(placement.requests), len(placement.forked)
            target, prompts = now - self._begun, placement.prompts
            pace.scored(placement.rows, forked, target, prompts)
            if self._last is not None and not prompts:
                pace.stepped(requests, target, now - self._last)
            if predicted := sum(drafter.predicted.values()):
                pace.came_true(placement.accepted, predicted)
            pace.compared(requests, placement.rows, forked, placement.accepted)
        self._last = None if placement.prompts else now
