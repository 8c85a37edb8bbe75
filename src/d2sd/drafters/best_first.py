"""The most probable prefixes of one pass's marginals (DDTree)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from d2sd.drafters.proposer import Candidates, Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import TokenTree


class BestFirstDrafter(Drafter):
    """The `budget` most probable paths after the anchor, by the product of their marginals.

    The budget counts drafted nodes; the anchor comes on top.
    """

    def __init__(self, proposer: Proposer, budget: int = 64, block_size: int | None = None) -> None:
        self._proposer = proposer
        self._budget = budget
        self._block_size = block_size or proposer.block_size

    def draft(self, context: Context) -> TokenTree:
        proposal = self._proposer.propose(context, [(context.anchor,)], self._block_size)
        # A token of rank j has j more probable siblings, so `budget` ranks are always enough.
        return best_first_tree(context.anchor, proposal.top(self._budget), self._budget)


def best_first_tree(anchor: int, candidates: Candidates, budget: int) -> TokenTree:
    """The `budget` most probable paths of the single row of `candidates`."""
    [row] = ranked_rows(candidates, [()], ["first"])
    return ranked_tree(anchor, linked(row), budget)


@dataclass(frozen=True)
class RankedRow:
    """A row of a pass: the tokens it kept; per slot, tokens and probabilities, best first."""

    kept: tuple[int, ...]
    tokens: list[list[int]]
    probs: list[list[float]]
    source: str


def ranked_rows(
    candidates: Candidates, kept: Sequence[tuple[int, ...]], sources: Sequence[str]
) -> list[RankedRow]:
    """The rows of a pass on the host."""
    tokens, probs = candidates.tokens.tolist(), candidates.probs.tolist()
    return [RankedRow(*row) for row in zip(kept, tokens, probs, sources, strict=True)]


@dataclass(eq=False, slots=True)
class Slot:
    """What may follow a path: tokens with their probabilities, best first, and what comes after.

    After any token comes `rest`, the next slot of the same row, unless `redrafted` names another.
    """

    tokens: list[int]
    probs: list[float]
    source: str
    rest: Slot | None
    redrafted: dict[int, Slot] = field(default_factory=dict)


def linked(row: RankedRow) -> Slot | None:
    """The first slot of a row that it does not show, linked to all later ones."""
    slot = None
    for place in reversed(range(len(row.kept), len(row.tokens))):
        slot = Slot(row.tokens[place], row.probs[place], row.source, slot)
    return slot


def ranked_tree(anchor: int, start: Slot | None, budget: int) -> TokenTree:
    """The `budget` most probable paths that begin at slot `start`, most probable first.

    A path's probability is the product of its tokens'. Only two paths can be the next best after
    one is taken, its next sibling and its best child, so a heap of those gives the exact answer
    in O(budget log budget). Paths of probability 0 are left out.
    """
    tokens, parents, sources = [anchor], [-1], ["anchor"]
    waiting: list[tuple[float, int, int, float, Slot, int]] = []
    pushed = 0

    def push(parent: int, reach: float, slot: Slot | None, rank: int) -> None:
        nonlocal pushed
        if slot is not None and rank < len(slot.probs) and (chance := reach * slot.probs[rank]) > 0:
            pushed += 1  # equally probable paths leave in the order they came
            heapq.heappush(waiting, (-chance, pushed, parent, reach, slot, rank))

    push(0, 1.0, start, 0)
    while waiting and len(tokens) <= budget:
        chance, _, parent, reach, slot, rank = heapq.heappop(waiting)
        token = slot.tokens[rank]
        tokens.append(token)
        parents.append(parent)
        sources.append(slot.source)
        push(parent, reach, slot, rank + 1)
        push(len(tokens) - 1, -chance, slot.redrafted.get(token, slot.rest), 0)
    return TokenTree(tuple(tokens), tuple(parents), tuple(sources))
