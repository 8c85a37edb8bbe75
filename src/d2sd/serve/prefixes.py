"""Conversations that go on find their rows again: KV and features, within a bound."""

from __future__ import annotations

from collections.abc import Sequence

from d2sd.interfaces import shared_prefix
from d2sd.target.hf import HFTarget, KeptRows

WORTH_KEEPING = 16
"""Rows fewer than these are read again in less time than they take to look after."""


class PrefixCache:
    """Rows of sequences that a target has read, the least lately used dropped first.

    The target itself holds the latest one. Before another prompt overwrites it, its rows are
    copied out; before a prompt is read, the longest prefix of it that is kept comes back.
    """

    def __init__(self, target: HFTarget, limit: int) -> None:
        self._target, self._limit = target, limit
        self._kept: list[KeptRows] = []

    @property
    def bytes(self) -> int:
        return sum(rows.bytes for rows in self._kept)

    def prepare(self, prompt: Sequence[int]) -> int:
        """Make the target hold as much of `prompt` as is known; gives how many tokens that is."""
        wanted, live = tuple(prompt[:-1]), self._target.committed
        here = shared_prefix(live, wanted)
        best = max(self._kept, key=lambda rows: shared_prefix(rows.tokens, wanted), default=None)
        there = 0 if best is None else shared_prefix(best.tokens, wanted)
        if len(live) - here >= WORTH_KEEPING:
            self._keep(self._target.kept_rows())
        if best is None or there <= here:
            return here
        self._target.restore(best, there)
        self._used(best)
        return there

    def _keep(self, rows: KeptRows) -> None:
        """What is a prefix of the new rows goes; then whatever is beyond the bound."""
        self._kept = [
            old for old in self._kept if shared_prefix(old.tokens, rows.tokens) < len(old.tokens)
        ]
        self._kept.append(rows)
        while self._kept and self.bytes > self._limit:
            del self._kept[0]

    def _used(self, rows: KeptRows) -> None:
        if any(rows is one for one in self._kept):
            self._kept = [one for one in self._kept if one is not rows] + [rows]
