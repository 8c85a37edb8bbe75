"""The most probable prefixes of one pass's marginals (DDTree)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace

from d2sd.drafters.proposer import Candidates, Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import TokenTree

FEW = 16
"""Candidates per slot that are tried first: a tree seldom takes so many children of one node."""


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

        def rank(candidates: int) -> RankedPaths:
            [row] = ranked_rows(proposal.top(candidates), [()], ["first"])
            return ranked_paths(linked(row), self._budget)

        return ranked_exactly(rank, self._budget).tree(context.anchor)


def best_first_tree(anchor: int, candidates: Candidates, budget: int) -> TokenTree:
    """The `budget` most probable paths of the single row of `candidates`."""
    [row] = ranked_rows(candidates, [()], ["first"])
    return ranked_tree(anchor, linked(row), budget)


@dataclass(frozen=True)
class RankedRow:
    """A row of a pass: the tokens it kept; per slot, tokens and probabilities, best first.

    `cut` says that the slots have further tokens, less probable than those listed.
    """

    kept: tuple[int, ...]
    tokens: list[list[int]]
    probs: list[list[float]]
    source: str
    cut: bool = False


def ranked_rows(
    candidates: Candidates, kept: Sequence[tuple[int, ...]], sources: Sequence[str]
) -> list[RankedRow]:
    """The rows of a pass on the host."""
    candidates = candidates.on_host()
    tokens, probs = candidates.tokens.tolist(), candidates.probs.tolist()
    return [
        RankedRow(*row, candidates.cut) for row in zip(kept, tokens, probs, sources, strict=True)
    ]


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
    cut: bool = False


def linked(row: RankedRow) -> Slot | None:
    """The first slot of a row that it does not show, linked to all later ones."""
    slot = None
    for place in reversed(range(len(row.kept), len(row.tokens))):
        slot = Slot(row.tokens[place], row.probs[place], row.source, slot, {}, row.cut)
    return slot


@dataclass(frozen=True)
class RankedPaths:
    """Paths after the anchor, most probable first; entry i is node i + 1 of their tree.

    `chances` are the probabilities of the paths that end at the nodes. The paths of the first n
    entries are the n most probable ones. `short` says that a slot had more tokens than it listed
    and that one of those might have come in, so the paths may not be the best.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    sources: tuple[str, ...]
    chances: tuple[float, ...]
    short: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def tree(self, anchor: int, nodes: int | None = None) -> TokenTree:
        """The tree of the first `nodes` paths (of all, by default) below `anchor`."""
        return TokenTree(
            (anchor, *self.tokens[:nodes]),
            (-1, *self.parents[:nodes]),
            ("anchor", *self.sources[:nodes]),
        )


def few_candidates(budget: int, least: int = 0) -> int:
    """How many candidates per slot are tried first: `least` or more, but at most `budget`."""
    return min(budget, max(FEW, least))


def ranked_exactly(rank: Callable[[int], RankedPaths], budget: int, least: int = 0) -> RankedPaths:
    """`rank(budget)`, from fewer candidates per slot where those give the same paths.

    `rank(candidates)` is asked with `few_candidates` first. A token of rank j has j more probable
    siblings, so `budget` candidates are always enough, and nearly always far too many.
    """
    paths = rank(few_candidates(budget, least))
    return rank(budget) if paths.short else paths


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
    short = False
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
        if rank < len(slot.probs) and (sibling := reach * slot.probs[rank]) > 0:
            pushed += 1
            heapreplace(waiting, (-sibling, pushed, parent, reach, slot, rank))
        else:
            heappop(waiting)
            short = short or (slot.cut and rank == len(slot.probs) and count < budget)
        below = slot.redrafted.get(token, slot.rest)
        if below is not None and (child := chance * below.probs[0]) > 0:
            pushed += 1
            heappush(waiting, (-child, pushed, count, chance, below, 0))
    return RankedPaths(tuple(tokens), tuple(parents), tuple(sources), tuple(chances), short)
