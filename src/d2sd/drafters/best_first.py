"""The most probable prefixes of one pass's marginals (DDTree)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush, heapreplace

from d2sd.drafters.boundary import expected_boundary
from d2sd.drafters.proposer import Candidates, Proposal, Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import Chain, TokenTree

FEW = 16
"""Candidates of a slot that are fetched at once; a tree seldom takes so many children of a node."""

More = Callable[[int], tuple[list[int], list[float]]]
"""count -> a slot's most probable tokens and their probabilities, best first."""


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
        [row] = fetched_rows(proposal, [()], ["first"])
        tree = ranked_tree(context.anchor, linked(row), self._budget)
        return tree.drafted_from(row.chain)


def best_first_tree(anchor: int, candidates: Candidates, budget: int) -> TokenTree:
    """The `budget` most probable paths of the single row of `candidates`."""
    [row] = ranked_rows(candidates, [()], ["first"])
    return ranked_tree(anchor, linked(row), budget)


@dataclass(frozen=True)
class RankedRow:
    """A row of a pass: the tokens it kept; per slot, tokens and probabilities, best first.

    `more(slot, count)` fetches further ones; without it those listed are all there are. Whoever
    changes the probabilities must leave it out.
    """

    kept: tuple[int, ...]
    tokens: list[list[int]]
    probs: list[list[float]]
    source: str
    more: Callable[[int, int], tuple[list[int], list[float]]] | None = None

    @property
    def chain(self) -> Chain:
        """Its most probable tokens, and where they will most likely break."""
        own = slice(len(self.kept), None)
        tokens = tuple([tokens[0] for tokens in self.tokens[own]])
        return Chain(tokens, expected_boundary([probs[0] for probs in self.probs[own]]))


def ranked_rows(
    candidates: Candidates, kept: Sequence[tuple[int, ...]], sources: Sequence[str]
) -> list[RankedRow]:
    """The rows of a pass on the host, with these candidates and no more."""
    tokens, probs = candidates.tokens.tolist(), candidates.probs.tolist()
    return [RankedRow(*row) for row in zip(kept, tokens, probs, sources, strict=True)]


def fetched_rows(
    proposal: Proposal, kept: Sequence[tuple[int, ...]], sources: Sequence[str], few: int = FEW
) -> list[RankedRow]:
    """The rows of a pass on the host, `few` candidates a slot; more are fetched when one asks."""
    rows = ranked_rows(proposal.top(few), kept, sources)
    return [replace(row, more=partial(proposal.ranks, r)) for r, row in enumerate(rows)]


@dataclass(eq=False, slots=True)
class Slot:
    """What may follow a path: tokens with their probabilities, best first, and what comes after.

    After any token comes `rest`, the next slot of the same row, unless `redrafted` names another.
    `more` fetches further tokens, as in `RankedRow`.
    """

    tokens: list[int]
    probs: list[float]
    source: str
    rest: Slot | None
    redrafted: dict[int, Slot] = field(default_factory=dict)
    more: More | None = None

    def extend(self) -> None:
        """List more tokens, if there are any; in place, for slots that share the lists."""
        if self.more is not None:
            listed = set(self.tokens)
            for token, prob in zip(*self.more(4 * len(listed)), strict=True):
                if token not in listed:  # of equally probable ones any may have been listed
                    self.tokens.append(token)
                    self.probs.append(prob)
            if len(self.tokens) == len(listed):
                self.more = None


def linked(row: RankedRow) -> Slot | None:
    """The first slot of a row that it does not show, linked to all later ones."""
    slot = None
    for place in reversed(range(len(row.kept), len(row.tokens))):
        more = partial(row.more, place) if row.more else None
        slot = Slot(row.tokens[place], row.probs[place], row.source, slot, {}, more)
    return slot


@dataclass(frozen=True)
class RankedPaths:
    """Paths after the anchor, most probable first; entry i is node i + 1 of their tree.

    `chances` are the probabilities of the paths that end at the nodes. The paths of the first n
    entries are the n most probable ones.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    sources: tuple[str, ...]
    chances: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def tree(self, anchor: int, nodes: int | None = None) -> TokenTree:
        """The tree of the first `nodes` paths (of all, by default) below `anchor`."""
        return TokenTree(
            (anchor, *self.tokens[:nodes]),
            (-1, *self.parents[:nodes]),
            ("anchor", *self.sources[:nodes]),
        )


def ranked_tree(anchor: int, start: Slot | None, budget: int) -> TokenTree:
    """The `budget` most probable paths that begin at slot `start`, most probable first."""
    return ranked_paths(start, budget).tree(anchor)


def ranked_paths(start: Slot | None, budget: int) -> RankedPaths:
    """The `budget` most probable paths that begin at slot `start`, most probable first.

    A path's probability is the product of its tokens'. Only two paths can be the next best after
    one is taken, its next sibling and its best child, so a heap of those gives the exact answer
    in O(budget log budget). Paths of probability 0 are left out; equally probable ones leave in
    the order they came.
    """
    tokens: list[int] = []
    parents: list[int] = []
    sources: list[str] = []
    chances: list[float] = []
    waiting: list[tuple[float, int, int, float, Slot, int]] = []
    if start is not None and start.probs[0] > 0:
        waiting.append((-start.probs[0], 0, 0, 1.0, start, 0))
    count = pushed = 0
    while waiting and count < budget:
        chance, _, parent, reach, slot, rank = waiting[0]
        count += 1
        chance = -chance
        token = slot.tokens[rank]
        tokens.append(token)
        parents.append(parent)
        sources.append(slot.source)
        chances.append(chance)
        rank += 1
        if rank == len(slot.probs) and count < budget:
            slot.extend()
        if rank < len(slot.probs) and (sibling := reach * slot.probs[rank]) > 0:
            pushed += 1
            heapreplace(waiting, (-sibling, pushed, parent, reach, slot, rank))
        else:
            heappop(waiting)
        below = slot.redrafted.get(token, slot.rest)
        if below is not None and (child := chance * below.probs[0]) > 0:
            pushed += 1
            heappush(waiting, (-child, pushed, count, chance, below, 0))
    return RankedPaths(tuple(tokens), tuple(parents), tuple(sources), tuple(chances))
