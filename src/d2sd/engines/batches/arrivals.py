"""Whether an engine's next pass is likely to read prompts beside decoding."""

from __future__ import annotations

from collections.abc import Sequence

SEVERAL = 2
"""Requests new in a step after which more are likely to come."""


class Arrivals:
    """Looks at what every step emitted, for an engine doesn't say whom it takes in next.

    Under load a request that leaves the batch makes room for one that waits, or its client sends
    another. Requests that come at the same time reach the engine over some steps. What is drafted
    just then is mostly scored by a pass that reads a prompt.
    """

    def __init__(self) -> None:
        self._before = 0

    def likely(self, ends: Sequence[Sequence[int]]) -> bool:
        """After a step in which each request of the batch emitted `ends`, nothing while its prompt
        isn't read to the end."""
        came, self._before = len(ends) - self._before, len(ends)
        return came < 0 or came >= SEVERAL or not all(ends)
