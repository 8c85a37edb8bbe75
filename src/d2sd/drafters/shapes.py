"""The best shape of a tree whose children are accepted by depth and rank (Sequoia, 2402.12374)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.tree import TokenTree

RANKS = 8
"""Most children of a node."""

MOST_NODES = 256
"""Largest budget: planning takes time by its square."""

PRIOR = 4.0
"""Trials that a first guess is worth."""

REPLAN = 32
"""Steps after which the shape is chosen anew."""


@dataclass(frozen=True)
class Shape:
    """A tree without tokens: node n is child number `ranks[n]`, from 0, of `parents[n]`.

    Node 0 is the anchor; parents come before children, siblings in the order of their ranks.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Distance of every node from the anchor."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @property
    def inner(self) -> list[int]:
        """Nodes that have children."""
        return sorted(set(self.parents[1:]))

    @property
    def widest(self) -> int:
        """The most children that a node has."""
        return max(self.ranks) + 1


class Acceptance:
    """How often a child was accepted, by its parent's depth and its rank, and the shape for it.

    A child counts as tried when its parent was on the accepted path. First guesses are hopeful:
    what was never tried comes into the shape sooner or later.
    """

    def __init__(self, depths: int, budget: int) -> None:
        if budget > MOST_NODES:
            raise ValueError(f"the budget of a drawn tree is {budget}; give at most {MOST_NODES}")
        self._budget = budget
        self._taken = [[PRIOR * 0.6 * 0.4**rank for rank in range(RANKS)] for _ in range(depths)]
        self._tried = [[PRIOR] * RANKS for _ in range(depths)]
        self._steps = 0
        self._shape: Shape | None = None

    @property
    def rates(self) -> list[list[float]]:
        """Depth of the parent, rank -> probability that this child is accepted."""
        pairs = zip(self._taken, self._tried, strict=True)
        return [[a / b for a, b in zip(taken, tried, strict=True)] for taken, tried in pairs]

    def saw(self, tree: TokenTree, emitted: Sequence[int]) -> None:
        """Count a step: its tree, and the tokens that came to be emitted."""
        node = 0
        for depth, token in enumerate(emitted[: len(self._tried)]):
            children = tree.below[node]
            if not children:
                break
            for rank in range(len(children)):
                self._tried[depth][rank] += 1
            child = tree.children.get((node, token))
            if child is None:
                break
            self._taken[depth][children.index(child)] += 1
            node = child
        self._steps += 1

    def shape(self) -> Shape:
        """The best shape as far as is known; looked for again every REPLAN steps."""
        if self._shape is None or self._steps >= REPLAN:
            self._shape, self._steps = best_shape(self.rates, self._budget), 0
        return self._shape


def best_shape(rates: Sequence[Sequence[float]], budget: int) -> Shape:
    """The shape of `budget` nodes below the anchor from which most tokens are accepted on average.

    `rates[d][b]` is the probability that child b of a node at depth d is accepted. Dynamic
    programming over (depth, rank, nodes): a node of rank b takes y of the m nodes left, the ranks
    after it share m - y; Sequoia's recurrence (§3.1) with rates for every depth.
    """
    below = torch.zeros(budget + 1)  # most tokens below a node of the depth in hand, by nodes there
    cuts: list[list[list[int]]] = []
    for depth_rates in reversed(rates):
        best = torch.zeros(budget + 1)
        cut: list[list[int]] = []
        for rate in reversed(depth_rates):
            best, sizes = _with_one_more(rate * (1 + below[:-1]), best)
            cut.append(sizes.tolist())
        below = best
        cuts.append(cut[::-1])
    return _built(cuts[::-1], budget)


def _with_one_more(
    values: Float[Tensor, " nodes"], best: Float[Tensor, " places"]
) -> tuple[Float[Tensor, " places"], Int[Tensor, " places"]]:
    """Most tokens of m nodes for a child with its later siblings, and the child's nodes, by m.

    `values[y - 1]` is what a child with y nodes is worth, `best[m]` what the later siblings are.
    """
    left = torch.arange(len(best))[:, None] - torch.arange(1, len(best))
    worth = values + best[left.clamp(min=0)].masked_fill(left < 0, -torch.inf)
    most = worth.max(-1)  # of equals the first: no more nodes than are of use
    return most.values.clamp(min=0), torch.where(most.values > 0, most.indices + 1, 0)


def _built(cuts: Sequence[Sequence[Sequence[int]]], budget: int) -> Shape:
    """The shape that the cuts tell: `cuts[d][b][m]` nodes of m go to child b below depth d."""
    parents, ranks = [-1], [0]
    waiting = [(0, 0, budget)]
    while waiting:
        node, depth, left = waiting.pop(0)
        for rank, sizes in enumerate(cuts[depth] if depth < len(cuts) else ()):
            if not (size := sizes[left]):
                break
            parents.append(node)
            ranks.append(rank)
            waiting.append((len(parents) - 1, depth + 1, size - 1))
            left -= size
    return Shape(tuple(parents), tuple(ranks))
