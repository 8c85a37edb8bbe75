"""How the nodes of a tree were drawn: what a verifier must know besides the tree itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Kind(Enum):
    """Where the children of a node come from, each word as in «the draws are …»."""

    FIXED = "none: a function of the context"
    INDEPENDENT = "independent, all from one law"
    DISTINCT = "without replacement"
    HYBRID = "without replacement, after children that are a function of the context"


@dataclass(frozen=True, eq=False)
class Law:
    """A distribution over some tokens; all others have probability 0."""

    tokens: Int[Tensor, " candidates"]
    probs: Float[Tensor, " candidates"]

    @classmethod
    def certain(cls, token: int) -> Law:
        """All of it on one token: the law of a child that was not drawn."""
        return cls(torch.tensor([token]), torch.ones(1, dtype=torch.float64))

    def of(self, token: int) -> float:
        """The probability of a token."""
        return float(self.probs[self.tokens == token].sum())

    def without(self, token: int) -> Law:
        """The law of a draw from the other tokens."""
        others = self.probs.masked_fill(self.tokens == token, 0)
        return Law(self.tokens, others / others.sum())


@dataclass(frozen=True, eq=False)
class Draws:
    """Which nodes of a tree were drawn, in which order, and from what.

    `drawn` lists them in the order of their draws; under INDEPENDENT a node stands there as often
    as it was drawn, under HYBRID nodes that were chosen do not. The draws below node n come from
    the law of row `rows[n]`: token `tokens[r, c]` has probability `probs[r, c]`; a row's tokens
    are distinct. `shared` says that nodes of equal depth have the same draws below them, cut to
    different numbers at most; otherwise all draws are independent.

    How many draws a node has may depend on the laws and on what happened before this step. Of the
    tokens drawn, it may depend on no other than repeats (fewer nodes) and what lies above.
    """

    kind: Kind
    tokens: Int[Tensor, "laws candidates"]
    probs: Float[Tensor, "laws candidates"]
    rows: tuple[int, ...]
    drawn: tuple[int, ...]
    shared: bool = False

    def law(self, node: int) -> Law:
        """What the first draw below a node comes from."""
        row = self.rows[node]
        return Law(self.tokens[row], self.probs[row].double())

    def kept(self, places: dict[int, int]) -> Draws:
        """The same for a tree of fewer nodes: node n is now `places[n]`, or gone."""
        if self.kind is Kind.FIXED:
            return self
        return Draws(
            self.kind,
            self.tokens,
            self.probs,
            tuple(row for node, row in enumerate(self.rows) if node in places),
            tuple(places[node] for node in self.drawn if node in places),
            self.shared,
        )


NOT_DRAWN = Draws(Kind.FIXED, torch.empty(0, 0, dtype=torch.long), torch.empty(0, 0), (), ())
"""Of a tree that is a function of the context."""


def by_parent(parents: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The children of every node, in their order."""
    groups: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents[1:], 1):
        groups[parent].append(node)
    return tuple(map(tuple, groups))
