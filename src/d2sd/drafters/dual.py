"""D²SD: a first block, its likely boundaries, a second pass that redrafts after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from d2sd.drafters.block import FilledRow, fill
from d2sd.drafters.boundary import likely_boundaries, rejection_posterior
from d2sd.drafters.proposer import Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import Branch, TokenTree

ChooseBoundaries = Callable[[Float[Tensor, " drafted"], int], list[int]]
"""(posterior, branches) -> prefix lengths to keep, each below the posterior's length."""


class DualDrafter(Drafter):
    """The first block's chain and its redrafts after `branches` likely boundaries, in one tree.

    Pass 1 gives a greedy chain with confidences. Pass 2 is one batch: row i shows the anchor and
    the chain's first i tokens, the rest is redrafted greedily. A `second_block_size` above
    `block_size` adds the row that keeps the whole chain and extends it. `choose` picks the
    boundaries; the paper's rule is the default.
    """

    def __init__(
        self,
        first: Proposer,
        second: Proposer,
        branches: int = 4,
        block_size: int | None = None,
        second_block_size: int | None = None,
        choose: ChooseBoundaries = likely_boundaries,
    ) -> None:
        self._first, self._second = first, second
        self._branches, self._choose = branches, choose
        self._block_size = block_size or first.block_size
        self._second_block_size = second_block_size or self._block_size
        if self._second_block_size < self._block_size:
            raise ValueError(
                f"second_block_size is {self._second_block_size}, below the first block's "
                f"{self._block_size}; give at least {self._block_size}"
            )

    def draft(self, context: Context) -> TokenTree:
        [first] = fill(self._first, context, [()], self._block_size)
        kept = [first.rest[:boundary] for boundary in self._boundaries(first)]
        redrafts = fill(self._second, context, kept, self._second_block_size)
        branches = [Branch(first.rest, "first"), *as_branches(redrafts)]
        return TokenTree.from_branches(context.anchor, branches).drafted_from(first.chain)

    def _boundaries(self, first: FilledRow) -> list[int]:
        boundaries = self._choose(rejection_posterior(first.confidence), self._branches)
        if self._second_block_size > self._block_size:
            boundaries.append(len(first.rest))
        return boundaries


def as_branches(redrafts: Sequence[FilledRow], source: str = "second") -> list[Branch]:
    """Redrafted rows as branches whose source says how many drafted tokens they kept."""
    return [Branch(row.tokens, f"{source}@{len(row.kept)}") for row in redrafts]
