"""What the engine's steps teach the planner: how long they took, and which drafts came true."""

from __future__ import annotations

import time
from collections.abc import Callable

from d2sd.engines.batches.placement import Placement, PlainPass
from d2sd.engines.batches.plan import BatchDrafter


class StepClock:
    """Times steps that only decode; one that reads prompts says nothing of decoding."""

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
        decoding, requests = placement.decoding, placement.requests
        target = now - self._begun if decoding else None
        if pace is not None and target is not None:
            pace.scored(placement.rows, len(placement.forked), target)
            if self._last is not None:
                pace.stepped(len(requests), target, now - self._last)
            if predicted := sum(drafter.predicted.values()):
                pace.came_true(placement.accepted, predicted)
        if pace is not None:
            forked = len(placement.forked)
            pace.compared(len(requests), placement.rows, forked, placement.accepted, target)
        self._last = now if decoding else None
