"""Where a batch's trees lie in one pass of the engine: rows, positions, and what moves after it.

The engine lays every request's tokens out in a row and gives row r of a request the cache slot of
its r-th new token. A tree's nodes keep those slots, whatever their depth; their positions go by
depth; and after the walk the accepted path is copied into the slots of a plain continuation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from d2sd.tree import TokenTree


@dataclass(frozen=True)
class PlacedTree:
    """A request's tree in a pass: node n is row `row + n`, the anchor's position is `committed`.

    `first_row` is the request's first row; those before `row` are known tokens.
    """

    request: str
    tree: TokenTree
    first_row: int
    row: int
    committed: int

    @property
    def rows(self) -> slice:
        """The tree's rows in the pass."""
        return slice(self.row, self.row + len(self.tree))

    @property
    def forked(self) -> bool:
        """Whether the tree is anything but a chain, which any causal attention reads rightly."""
        return any(parent != node - 1 for node, parent in enumerate(self.tree.parents))


@dataclass
class Placement:
    """All trees of a pass in the order of the batch, and the paths that the walk accepted."""

    trees: Sequence[PlacedTree]
    paths: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forked = [placed for placed in self.trees if placed.forked]

    @property
    def requests(self) -> Sequence[str]:
        """Of the batch, in its order."""
        return [placed.request for placed in self.trees]

    @property
    def prompts(self) -> int:
        """Rows of known tokens: of prompts."""
        return sum(placed.row - placed.first_row for placed in self.trees)

    @property
    def rows(self) -> int:
        """Of all trees."""
        return sum(len(placed.tree) for placed in self.trees)

    @property
    def accepted(self) -> int:
        """Drafted tokens of all requests, once the trees were walked."""
        return sum(len(path) - 1 for path in self.paths)

    def positions(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """The rows of forked trees, and the positions of the tokens in them."""
        rows, positions = list[int](), list[int]()
        for placed in self.forked:
            rows += range(placed.rows.start, placed.rows.stop)
            positions += [placed.committed + depth for depth in placed.tree.depths]
        return torch.tensor(rows, dtype=torch.long), torch.tensor(positions, dtype=torch.long)

    def moves(self) -> tuple[Int[Tensor, " moved"], Int[Tensor, " moved"]]:
        """(from, to): whose row's keys and values belong into which row's slot after the walk."""
        sources, goals = list[int](), list[int]()
        for placed, path in zip(self.trees, self.paths, strict=True):
            for depth, node in enumerate(path):
                if node != depth:
                    sources.append(placed.row + node)
                    goals.append(placed.row + depth)
        return torch.tensor(sources, dtype=torch.long), torch.tensor(goals, dtype=torch.long)

    def committed_rows(self, number: int) -> list[int]:
        """Rows of the tokens of request `number` that are committed now, in their order."""
        placed = self.trees[number]
        known = range(placed.first_row, placed.row)
        return [*known, *(placed.row + node for node in self.paths[number])]


@dataclass(frozen=True)
class PlainPass:
    """A pass of one row for every request, at these positions, as plain decoding makes them.

    It is a placement of anchors alone, without the work of placing them.
    """

    requests: Sequence[str]
    starts: Sequence[int]
    forked: Sequence[PlacedTree] = ()
    prompts: int = 0
    accepted: int = 0

    @property
    def rows(self) -> int:
        """One a request."""
        return len(self.requests)


@dataclass(frozen=True)
class Scheduled:
    """What the engine runs of a request: `rows` rows from `first_row`, the last ones `drafts`.

    `computed` tokens of it are in the cache; `anchor` is the token before the drafts.
    """

    request: str
    first_row: int
    rows: int
    computed: int
    anchor: int
    drafts: Sequence[int]


def place(scheduled: Sequence[Scheduled], drafted: Mapping[str, TokenTree]) -> Placement:
    """The trees of a pass; drafts that are no leading part of the tree drafted form a chain."""
    return Placement([_placed(one, drafted.get(one.request)) for one in scheduled])


def _placed(one: Scheduled, drafted: TokenTree | None) -> PlacedTree:
    known = one.rows - len(one.drafts) - 1
    tree = _tree(one, drafted)
    return PlacedTree(one.request, tree, one.first_row, one.first_row + known, one.computed + known)


def _tree(one: Scheduled, drafted: TokenTree | None) -> TokenTree:
    tokens = (one.anchor, *one.drafts)
    if drafted is not None and drafted.tokens[: len(tokens)] == tokens:
        return drafted.first(len(tokens))
    return TokenTree(tokens, tuple(range(-1, len(tokens) - 1)), ("draft",) * len(tokens))
