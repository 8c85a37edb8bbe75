"""The paper's ablation arms as plain drafters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.drafters.block import FilledRow, fill
from d2sd.drafters.boundary import likely_boundaries, rejection_posterior
from d2sd.drafters.dual import as_branches
from d2sd.drafters.proposer import Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import Branch, TokenTree

# DFlash as its own second drafter (paper Table 6) needs no class: DualDrafter(first, first).


class SamplesDrafter(Drafter):
    """The greedy chain and `branches` independent samples of the same pass (paper Table 5).

    Has a generator of its own: the target's draws stay independent of the draft.
    """

    def __init__(
        self, proposer: Proposer, branches: int = 4, seed: int = 0, block_size: int | None = None
    ) -> None:
        self._proposer = proposer
        self._branches = branches
        self._block_size = block_size or proposer.block_size
        self._rng = torch.Generator().manual_seed(seed)

    def draft(self, context: Context) -> TokenTree:
        proposal = self._proposer.propose(context, [(context.anchor,)], self._block_size)
        chain = proposal.greedy().tokens[0, :, 0].tolist()
        drawn = torch.multinomial(
            proposal.probs[0].cpu(), self._branches, replacement=True, generator=self._rng
        )
        if proposal.token_ids is not None:
            drawn = proposal.token_ids.cpu()[drawn]
        samples = [Branch(tuple(tokens), "sample") for tokens in drawn.T.tolist()]
        return TokenTree.from_branches(context.anchor, [Branch(tuple(chain), "first"), *samples])


class ThreeLevelDrafter(Drafter):
    """D²SD with a third pass inside the second pass's rows (paper Table 7, at most 9 rows).

    Third rows go to the `third_branches` most probable breaks of all second rows: the chain
    breaks at i and the redraft after i then breaks at its own j. The second proposer serves both.
    """

    def __init__(
        self,
        first: Proposer,
        second: Proposer,
        branches: int = 4,
        third_branches: int = 4,
        block_size: int | None = None,
    ) -> None:
        self._first, self._second = first, second
        self._branches, self._third_branches = branches, third_branches
        self._block_size = block_size or first.block_size

    def draft(self, context: Context) -> TokenTree:
        [first] = fill(self._first, context, [()], self._block_size)
        posterior = rejection_posterior(first.confidence)
        kept = [first.rest[:i] for i in likely_boundaries(posterior, self._branches)]
        second = fill(self._second, context, kept, self._block_size)
        deeper = likely_second_breaks(posterior, second)[: self._third_branches]
        third = fill(self._second, context, deeper, self._block_size)
        branches = [
            Branch(first.rest, "first"),
            *as_branches(second, "second"),
            *as_branches(third, "third"),
        ]
        return TokenTree.from_branches(context.anchor, branches).drafted_from(first.chain)


def likely_second_breaks(
    posterior: Float[Tensor, " drafted"], redrafts: list[FilledRow]
) -> list[tuple[int, ...]]:
    """What third rows may keep, most probable first: leading parts of `redrafts`, all distinct.

    A part that a second row keeps already is left out.
    """
    chances: dict[tuple[int, ...], float] = {}
    for row in redrafts:
        breaks = posterior[len(row.kept)] * rejection_posterior(row.confidence)
        for accepted, chance in enumerate(breaks.tolist()):
            tokens = row.tokens[: len(row.kept) + accepted]
            chances[tokens] = max(chance, chances.get(tokens, 0.0))
    for row in redrafts:
        chances.pop(row.kept, None)
    return sorted(chances, key=lambda tokens: -chances[tokens])
