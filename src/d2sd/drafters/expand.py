"""EAGLE-2's tree on one pass's distributions: expand depth by depth, then rank all again."""

from __future__ import annotations

from heapq import nlargest

from d2sd.drafters.best_first import RankedPaths, RankedRow, fetched_rows
from d2sd.drafters.proposer import Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import TokenTree


class ExpandDrafter(Drafter):
    """Of every depth the `top` most probable paths get `top` children each; the `budget` best stay.

    EAGLE-2 (arXiv 2406.16858, §4) with its own defaults. It needs a pass a depth; here one pass
    says all, and `best-first` finds the `budget` best paths there are: this is its baseline.
    """

    def __init__(
        self, proposer: Proposer, budget: int = 59, top: int = 10, block_size: int | None = None
    ) -> None:
        self._proposer = proposer
        self._budget, self._top = budget, top
        self._block_size = block_size or proposer.block_size

    def draft(self, context: Context) -> TokenTree:
        proposal = self._proposer.propose(context, [(context.anchor,)], self._block_size)
        [row] = fetched_rows(proposal, [()], ["first"], self._top)
        return expanded(row, self._top, self._budget).tree(context.anchor)


def expanded(row: RankedRow, top: int, budget: int) -> RankedPaths:
    """The `budget` most probable of all paths that the expansion reached, parents first."""
    reached = [(1.0, -1, -1)]  # probability, parent, token; entry 0 is the anchor
    frontier = [0]
    for tokens, probs in zip(row.tokens, row.probs, strict=True):
        new = range(len(reached), len(reached) + len(frontier) * min(top, len(tokens)))
        reached += [
            (reached[parent][0] * prob, parent, token)
            for parent in frontier
            for token, prob in zip(tokens[:top], probs[:top], strict=True)
        ]
        frontier = nlargest(top, new, key=lambda entry: reached[entry][0])
    # stable: of equal ones the parent, which is earlier, stays
    kept = sorted(nlargest(budget, range(1, len(reached)), key=lambda entry: reached[entry][0]))
    place = {0: 0} | {entry: number for number, entry in enumerate(kept, 1)}
    return RankedPaths(
        tuple(reached[entry][2] for entry in kept),
        tuple(place[reached[entry][1]] for entry in kept),
        (row.source,) * len(kept),
        tuple(reached[entry][0] for entry in kept),
    )
